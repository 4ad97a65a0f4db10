"""Scaled dot-product attention."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """`softmax(scale * q @ k^T) @ v` for every batch and head, without the matrix of scores.

    Online softmax (Milakov and Gimelshein, 2018) over blocks of keys, as in FlashAttention (Dao et al., 2022, 2023).

    Args:
        q: `(batch, q_heads, q_length, d)`, d one of 32, 64, 80, 96, 128.
        k: `(batch, k_heads, k_length, d)`. q_heads is a multiple of k_heads: query head h reads key head
            `h // (q_heads // k_heads)`, in place.
        v: `(batch, k_heads, k_length, d)`.
        is_causal: query i sees the keys j <= i, both counted from the start of their sequence, as in
            `torch.nn.functional.scaled_dot_product_attention`, also where the lengths differ.
        scale: what scores are multiplied by, `1 / sqrt(d)` by default; finite in float32.

    All are float32, float16 or bfloat16, of the same dtype, on `mps`. Any strides are read in place. Lengths may be 0;
    a query that sees no key gets zeros.

    Returns:
        `(batch, q_heads, q_length, d)`, contiguous, in the dtype of `q`. Scores, softmax and sums are float32, rounded
        once at the end; they are right for scores between -2e38 and 2e38, before the scale and after. The same call
        gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `q` (all on `meta` gives the shape alone),
            shapes that do not match, a scale that is not finite in float32, more batches, heads or queries than a grid
            holds.
        TypeError: None for a tensor, another dtype, or several dtypes.
        NotImplementedError: another head dimension; a tensor that is sparse, nested or otherwise not dense; a gradient
            is needed, in reverse mode or in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.attention(q, k, v, is_causal=is_causal, scale=scale)


@torch.library.register_fake(add_op_namespace_prefix("attention"))
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    _C.check_attention(q, k, v, is_causal, scale)
    return q.new_empty(q.shape)
