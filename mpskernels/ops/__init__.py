"""The ops, as typed functions. Each is `torch.ops.mpsk.<name>` as well, with the same checks and errors."""

from .activation import geglu, reglu, swiglu
from .attention import attention
from .matmul import matmul
from .norm import rms_norm
from .rope import rope
from .softmax import log_softmax, softmax

__all__ = ["attention", "geglu", "log_softmax", "matmul", "reglu", "rms_norm", "rope", "softmax", "swiglu"]
