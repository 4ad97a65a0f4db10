"""The ops, as typed functions. Each is `torch.ops.mpsk.<name>` as well, with the same checks and errors."""

from .attention import attention
from .matmul import gated_linear, grouped_matmul, linear, matmul
from .norm import rms_norm

__all__ = ["attention", "gated_linear", "grouped_matmul", "linear", "matmul", "rms_norm"]
