"""Matrix products."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The matrix product of `a` and `b`, with the shape rules of `torch.matmul`.

    Args:
        a: `(..., m, k)`, or `(k,)`, which stands for `(1, k)` with the 1 left out of the result.
        b: `(..., k, n)`, or `(k,)`, which stands for `(k, 1)` with the 1 left out of the result.

    Both are float32, float16 or bfloat16, of the same dtype, on `mps`. Batch dimensions broadcast. Any strides are read
    in place: transposed, sliced and expanded views cost no copy, as long as at most 8 batch dimensions remain after
    those that one stride describes are merged. Sizes may be 0 or 1; k = 0 gives zeros.

    Returns:
        `(..., m, n)`, contiguous, in the dtype of `a`. Products are summed in float32 and rounded once. The same call
        gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of the other (both on `meta` gives the shape
            alone), a scalar, sizes that do not match.
        TypeError: None for a tensor, another dtype, or two dtypes.
        NotImplementedError: more batch dimensions or a larger grid than the kernels take; a tensor that is sparse,
            nested or otherwise not dense; a gradient is needed, in reverse mode or in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.matmul(a, b)


@torch.library.register_fake(add_op_namespace_prefix("matmul"))
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    sizes = _C.check_matmul(a, b)
    return a.new_empty(sizes)
