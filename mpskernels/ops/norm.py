"""Normalization."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6) -> torch.Tensor:
    """Root mean square normalization over the last dimension: `x / sqrt(mean(x * x) + eps) * weight`.

    Root mean square layer normalization: Zhang and Sennrich, 2019.

    Args:
        x: `(..., columns)`, float32, float16 or bfloat16, of at most 17 dimensions. Any strides are read in place.
        weight: `(columns,)`, in the dtype of `x` or in float32.
        eps: finite in float32, not negative. The smallest normal float32 stands in for less, so that a row of zeros
            stays zero.

    Both are on `mps`. There may be no rows, or no columns.

    Returns:
        `(..., columns)`, contiguous, in the dtype of `x`. Computed in float32 and rounded once, after the weight.
        A row whose sum of squares passes the range of float32 becomes zero, as in `torch.nn.functional.rms_norm`.
        The same call gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `x` (both on `meta` gives the shape alone), a
            scalar, more dimensions, sizes that do not match, another eps, 2^32 rows or 2^31 columns.
        TypeError: None for `x`, another dtype.
        NotImplementedError: a tensor that is sparse, nested or otherwise not dense; a gradient is needed, in reverse
            mode or in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.rms_norm(x, weight, eps)


@torch.library.register_fake(add_op_namespace_prefix("rms_norm"))
def _(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    _C.check_rms_norm(x, weight, eps)
    return x.new_empty(x.shape)
