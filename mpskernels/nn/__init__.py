"""Drop-in modules: the parameters, names and arguments of torch's own, so that state dicts load both ways.

The gradients are those of the ops beneath.
"""

import torch

import mpskernels
from mpskernels.nn.activation import GatedMLP, GeGLU, ReGLU, SwiGLU

__all__ = ["GatedMLP", "GeGLU", "Linear", "RMSNorm", "ReGLU", "SwiGLU"]

from .norm import GroupNorm, LayerNorm, RMSNorm

__all__ = ["GroupNorm", "LayerNorm", "Linear", "RMSNorm"]


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`, trainable; the weight is read through a transposed view, never copied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return mpskernels.linear(input, self.weight, self.bias)
