"""Drop-in modules: the parameters, names and arguments of torch's own, so that state dicts load both ways.

The gradients are those of the ops beneath.
"""

import torch

import mpskernels
from mpskernels.nn.activation import GatedMLP, GeGLU, ReGLU, SwiGLU
from mpskernels.nn.loss import CrossEntropyLoss, LinearCrossEntropyLoss
from mpskernels.nn.norm import GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "CrossEntropyLoss",
    "GatedMLP",
    "GeGLU",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "LinearCrossEntropyLoss",
    "RMSNorm",
    "ReGLU",
    "SwiGLU",
]


class Linear(torch.nn.Linear):
    """`torch.nn.Linear`, trainable; the weight is read through a transposed view, never copied."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return mpskernels.linear(input, self.weight, self.bias)
