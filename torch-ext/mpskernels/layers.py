"""Layers that `kernels.kernelize` puts in the place of a model's own, whose parameters they use."""

import torch

from .ops import rms_norm


class RMSNorm(torch.nn.Module):
    """Root mean square normalization as in Llama: `x / sqrt(mean(x * x) + variance_epsilon) * weight`."""

    has_backward = False
    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)
