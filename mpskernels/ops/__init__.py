"""The ops, as typed functions. Each is `torch.ops.mpsk.<name>` as well, with the same checks and errors."""

from .attention import attention
from .matmul import gated_linear, linear, matmul
from .norm import rms_norm

__all__ = ["attention", "gated_linear", "linear", "matmul", "rms_norm"]
