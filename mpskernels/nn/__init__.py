"""Drop-in modules: the parameters, names and arguments of torch's own, so that state dicts load both ways.

`RMSNorm` is forward only, like the op beneath: call it under `torch.no_grad()`.
"""

import torch

import mpskernels
from mpskernels.nn.activation import GatedMLP, GeGLU, ReGLU, SwiGLU

__all__ = ["GatedMLP", "GeGLU", "Linear", "RMSNorm", "ReGLU", "SwiGLU"]


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension."""

    def __init__(self, normalized_shape: int | list[int] | tuple[int, ...], *args, **kwargs) -> None:
        super().__init__(normalized_shape, *args, **kwargs)
        if len(self.normalized_shape) != 1:
            raise NotImplementedError(
                f"mpskernels.nn.RMSNorm: expected normalized_shape of one dimension, got {self.normalized_shape}"
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return mpskernels.rms_norm(x, self.weight, eps)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`, trainable; the weight is read through a transposed view, never copied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return mpskernels.linear(input, self.weight, self.bias)
