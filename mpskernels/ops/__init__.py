"""The ops, as typed functions. Each is `torch.ops.mpsk.<name>` as well, with the same checks and errors."""

from .activation import geglu, reglu, swiglu
from .attention import attention
from .loss import cross_entropy, cross_entropy_and_gradient, linear_cross_entropy
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
from .rope import qk_norm_rope, rope
from .softmax import log_softmax, softmax

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "cross_entropy_and_gradient",
    "gated_linear",
    "gated_rms_norm",
    "geglu",
    "group_norm",
    "grouped_matmul",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "matmul",
    "modulated_norm",
    "qk_norm_rope",
    "reglu",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
]
