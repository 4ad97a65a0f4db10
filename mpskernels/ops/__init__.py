"""The ops, as typed functions. Each is `torch.ops.mpsk.<name>` as well, with the same checks and errors."""

from .attention import attention
from .matmul import gated_linear, grouped_matmul, linear, matmul
from .norm import (
    add_layer_norm,
    add_rms_norm,
    gated_rms_norm,
    group_norm,
    layer_norm,
    modulated_norm,
    rms_norm,
)

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "gated_linear",
    "gated_rms_norm",
    "group_norm",
    "grouped_matmul",
    "layer_norm",
    "linear",
    "matmul",
    "modulated_norm",
    "rms_norm",
]
