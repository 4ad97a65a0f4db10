"""Rotary position embedding, and the norm of heads that comes before it."""

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
    interleaved_sections: bool = False,
    inverse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Turns each pair of columns of every head by `position * base ** (-pair / pairs)`, of q and k in one launch.

    RoFormer: Su et al., 2021. Sections: Qwen2-VL (Wang et al., 2024); interleaved: Qwen3-VL (2025).

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
        interleaved_sections: pairs follow the rows of positions in turns, T H W T H W ..., rather than one section
            after the other; those left where the other sections are through follow the first row.
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
            a table too short for offset and length, sections without positions or with a table, interleaved ones that
            have more turns than there are.
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
        interleaved_sections=interleaved_sections,
        inverse=inverse,
    )
    return q_out if k is None else (q_out, k_out)


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    offset: int = 0,
    base: float = 10000.0,
    dims: int | None = None,
    interleaved: bool = False,
    sections: list[int] | tuple[int, ...] = (),
    interleaved_sections: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`rope(rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps))`, each head normalized, in one launch.

    Norms of queries and keys: Dehghani et al., 2023; as Qwen3 and Gemma 3 have them.

    Args:
        q, k: as in `rope`, of at most 512 columns. Any strides are read in place, such as those of a view of one
            projection to q, k and v.
        q_weight, k_weight: `(d,)`, both in the dtype of `q` or both in float32, or neither.
        eps: as in `rms_norm`.
        cos, sin, positions: as in `rope`.
        weight_offset: what is added to both weights, finite in float32: 1.0 for Gemma. Without weights it is not used.
        offset, base, dims, interleaved, sections, interleaved_sections: as in `rope`. The norm is over all columns.

    All are on `mps`. Sizes may be 0.

    Returns:
        The rotated `q`, or `(q, k)` where there is a k; contiguous, in the dtype of `q`, computed in float32 and
        rounded once, after the rotation. Differentiable in q, k and the weights in reverse mode, once; nothing but the
        arguments is kept for it, and the gradient is one launch and one more that sums up those of the weights, in
        float32. Norms as exact as those of `rms_norm`, rotations as those of `rope`. The same call gives the same bits
        every time, as do its gradients.

    Raises:
        ValueError: as `rope` and `rms_norm`; one weight without the other, or a k_weight without k.
        TypeError: None for `q`, another dtype.
        NotImplementedError: more than 512 columns, and as `rope`; a gradient of the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    q_out, k_out = ops.qk_norm_rope(
        q,
        k,
        q_weight,
        k_weight,
        eps,
        cos,
        sin,
        positions,
        weight_offset=weight_offset,
        offset=offset,
        base=base,
        dims=dims,
        interleaved=interleaved,
        sections=sections,
        interleaved_sections=interleaved_sections,
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
    interleaved_sections: bool = False,
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_rope(q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections)
    return q.new_empty(q.shape), q.new_empty(0 if k is None else k.shape)


def _refuse_table_gradients(op: str, needed: tuple[bool, ...]) -> None:
    for name, need in zip(("cos", "sin"), needed, strict=False):  # arguments left out have none
        if need:
            raise NotImplementedError(
                f"{add_op_namespace_prefix(op)}: no gradient for {name}, which requires grad; pass it detached"
            )


def _setup_context(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    _, k, cos, sin, positions = inputs
    _refuse_table_gradients("rope", ctx.needs_input_grad[2:4])
    ctx.save_for_backward(cos, sin, positions)
    ctx.has_k = k is not None
    ctx.options = {**keyword_only_inputs, "inverse": not keyword_only_inputs["inverse"]}


def _backward(ctx, grad_q: torch.Tensor, grad_k: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_q, of_k = ops.rope(grad_q, grad_k if ctx.has_k else None, *ctx.saved_tensors, **ctx.options)
    return of_q, of_k if ctx.has_k else None, None, None, None


torch.library.register_autograd(add_op_namespace_prefix("rope"), _backward, setup_context=_setup_context)


@torch.library.register_fake(add_op_namespace_prefix("qk_norm_rope"))
def _(
    q: torch.Tensor,
    k: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    offset: int = 0,
    base: float = 10000.0,
    dims: int | None = None,
    interleaved: bool = False,
    sections: list[int] | tuple[int, ...] = (),
    interleaved_sections: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (q, k, q_weight, k_weight, eps, cos, sin, positions)
    _C.check_qk_norm_rope(*tensors, weight_offset, offset, base, dims, interleaved, sections, interleaved_sections)
    return q.new_empty(q.shape), q.new_empty(0 if k is None else k.shape)


@torch.library.register_fake(add_op_namespace_prefix("qk_norm_rope_backward"))
def _(
    grad_q: torch.Tensor,
    grad_k: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor | None,
    *,
    weight_offset: float = 0.0,
    offset: int = 0,
    base: float = 10000.0,
    dims: int | None = None,
    interleaved: bool = False,
    sections: list[int] | tuple[int, ...] = (),
    interleaved_sections: bool = False,
    grad_x: bool = True,
    grad_weights: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = (grad_q, grad_k, q, k, q_weight, k_weight, eps, cos, sin, positions)
    _C.check_qk_norm_rope_backward(
        *tensors, weight_offset, offset, base, dims, interleaved, sections, interleaved_sections
    )
    asked = ((q, grad_x), (k, grad_x), (q_weight, grad_weights), (k_weight, grad_weights))
    return tuple(
        q.new_empty(0) if tensor is None or not wanted else tensor.new_empty(tensor.shape) for tensor, wanted in asked
    )


def _norm_setup_context(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    q, k, q_weight, k_weight, eps, *table = inputs
    _refuse_table_gradients("qk_norm_rope", ctx.needs_input_grad[5:7])
    ctx.save_for_backward(q, k, q_weight, k_weight, *table)
    ctx.eps, ctx.options = eps, keyword_only_inputs


def _norm_backward(ctx, grad_q: torch.Tensor, grad_k: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    tensors, table = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    needed = ctx.needs_input_grad[:4]
    gradients = ops.qk_norm_rope_backward(
        grad_q,
        None if tensors[1] is None else grad_k,
        *tensors,
        ctx.eps,
        *table,
        **ctx.options,
        grad_x=any(needed[:2]),
        grad_weights=any(needed[2:]),
    )
    return *(t if need else None for t, need in zip(gradients, needed, strict=True)), None, None, None, None


torch.library.register_autograd(
    add_op_namespace_prefix("qk_norm_rope"), _norm_backward, setup_context=_norm_setup_context
)
