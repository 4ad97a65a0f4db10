"""Gated linear units and the feed-forward block around them."""

import torch

import mpskernels


class SwiGLU(torch.nn.Module):
    """`silu(gate) * up`, of two tensors or of the halves of one: `mpskernels.swiglu`."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        return mpskernels.swiglu(gate, up)


class GeGLU(torch.nn.Module):
    """`gelu(gate) * up`, of two tensors or of the halves of one: `mpskernels.geglu`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        return mpskernels.geglu(gate, up, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class ReGLU(torch.nn.Module):
    """`relu(gate) * up`, of two tensors or of the halves of one: `mpskernels.reglu`."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        return mpskernels.reglu(gate, up)


class GatedMLP(torch.nn.Module):
    """`down_proj(act(gate_proj(x), up_proj(x)))`, with the parameter names of transformers' Llama and Gemma blocks.

    `act` is one of the modules above, or any function of gate and up.
    """

    def __init__(
        self, gate_proj: torch.nn.Module, up_proj: torch.nn.Module, down_proj: torch.nn.Module, act: torch.nn.Module
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act = gate_proj, up_proj, down_proj, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x), self.up_proj(x)))
