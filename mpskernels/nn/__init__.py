"""Drop-in modules: the parameters, names and arguments of torch's own, so that state dicts load both ways.

Gradients are those of the ops beneath: the norms have them, `Linear` is called under `torch.no_grad()`.
"""

import torch

import mpskernels

from .norm import GroupNorm, LayerNorm, RMSNorm

__all__ = ["GroupNorm", "LayerNorm", "Linear", "RMSNorm"]


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`; the weight is read through a transposed view, never copied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # One matrix of all rows: a batch of products with one shared weight would read it once for each.
        out = mpskernels.matmul(input.reshape(-1, input.size(-1)), self.weight.t())
        if self.bias is not None:
            out += self.bias
        return out.reshape(*input.shape[:-1], self.out_features)
