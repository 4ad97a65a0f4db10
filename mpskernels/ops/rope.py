"""Rotary position embedding."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def rope(
    q: torch.Tensor,
    k: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    *,
    offset: int = 0,
    base: float = 10000.0,
    dims: int | None = None,
    interleaved: bool = False,
    sections: list[int] | tuple[int, ...] = (),
    inverse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Turns each pair of columns of every head by `position * base ** (-pair / pairs)`, of q and k in one launch.

    RoFormer: Su et al., 2021. Sections: Qwen2-VL (Wang et al., 2024).

    Args:
        q: `(batch, heads, length, d)`, float32, float16 or bfloat16. Any strides are read in place, such as those of
            `(batch, length, heads, d)` transposed.
        k: `(batch, k_heads, length, d)`, in the dtype of `q`, or None.
        cos, sin: a table to read instead of computing, in float32 or the dtype of `q`: `(rows, dims / 2)`, or
            `(batch or 1, rows, dims / 2)` where there are no positions. It may be `dims` wide, of two equal halves as
            transformers makes them, unless pairs are interleaved. Position p reads row p.
        positions: int32 or int64, `(length,)` or `(batch or 1, length)`; with sections `(sections, batch or 1,
            length)`. Without, they count from 0.
        offset: is added to every position.
        base: of the frequencies that are computed.
        dims: how many columns of a head are turned, the first ones; the others are copied. d by default.
        interleaved: pair i is columns 2i and 2i + 1 (GPT-J), rather than i and i + dims / 2 (GPT-NeoX, Llama).
        sections: the count of pairs that follow each row of positions (multimodal rotary embedding), at most 4.
        inverse: turn back; which is the gradient, too.

    All are on `mps`. Sizes may be 0.

    Returns:
        The rotated `q`, or `(q, k)` where there is a k; contiguous, in the dtype of `q`, computed in float32, rounded
        once. Cosines and sines that are computed are within 2e-7 of the exact ones for positions below 2^28 in size:
        the angle is kept in whole turns and a fraction of 64 bits, so that it does not grow coarse. A position that has
        no row in the table gives NaN. Differentiable in q and k, any number of times. The same call gives the same bits
        every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `q` (all on `meta` gives the shape alone),
            sizes that do not match, odd dims or more than d, a base that is not positive and finite, cos without sin,
            a table too short for offset and length, sections without positions or with a table.
        TypeError: None for `q`, another dtype.
        NotImplementedError: more than 512 dims without a table, more sections; a tensor that is sparse, nested or
            otherwise not dense; a gradient of cos or sin, or in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    q_out, k_out = ops.rope(
        q,
        k,
        cos,
        sin,
        positions,
        offset=offset,
        base=base,
        dims=dims,
        interleaved=interleaved,
        sections=sections,
        inverse=inverse,
    )
    return q_out if k is None else (q_out, k_out)


@torch.library.register_fake(add_op_namespace_prefix("rope"))
def _(
    q: torch.Tensor,
    k: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    *,
    offset: int = 0,
    base: float = 10000.0,
    dims: int | None = None,
    interleaved: bool = False,
    sections: list[int] | tuple[int, ...] = (),
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_rope(q, k, cos, sin, positions, offset, base, dims, interleaved, sections)
    return q.new_empty(q.shape), q.new_empty(0 if k is None else k.shape)


def _setup_context(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    _, k, cos, sin, positions = inputs
    for name, needed in zip(("cos", "sin"), ctx.needs_input_grad[2:4], strict=False):  # arguments left out have none
        if needed:
            raise NotImplementedError(
                f"{add_op_namespace_prefix('rope')}: no gradient for {name}, which requires grad; pass it detached"
            )
    ctx.save_for_backward(cos, sin, positions)
    ctx.has_k = k is not None
    ctx.options = {**keyword_only_inputs, "inverse": not keyword_only_inputs["inverse"]}


def _backward(ctx, grad_q: torch.Tensor, grad_k: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_q, of_k = ops.rope(grad_q, grad_k if ctx.has_k else None, *ctx.saved_tensors, **ctx.options)
    return of_q, of_k if ctx.has_k else None, None, None, None


torch.library.register_autograd(add_op_namespace_prefix("rope"), _backward, setup_context=_setup_context)
