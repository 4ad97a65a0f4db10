"""Softmax over the last dimension, with what comes before it in attention and in language models' heads."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def softmax(
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    is_causal: bool = False,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """`exp(s) / sum(exp(s))` over the last dimension of the scores `s = cap(scale * x) + mask`.

    Online softmax (Milakov and Gimelshein, 2018); soft cap as in Gemma 2 (2024).

    Args:
        x: `(..., columns)`, float32, float16 or bfloat16. Any strides are read in place.
        mask: broadcasts to the shape of `x` without a copy: bool, true for what takes part, or numbers to add, in
            float32 or the dtype of `x`.
        scale: finite in float32.
        is_causal: column j of row i of the last two dimensions takes part where j <= i.
        soft_cap: turns a score s into `soft_cap * tanh(s / soft_cap)`, before the mask; positive.

    All are on `mps`. Sizes may be 0.

    Returns:
        The shape of `x`, contiguous, in its dtype; computed in float32 and rounded once. A score below -3e38, such as
        -inf, takes no part and gives 0; so does a whole row of them. NaN, and +inf, make their row NaN. Differentiable
        in x, once, from the result as it was rounded, as in torch. The same call gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `x` (all on `meta` gives the shape alone), a
            scalar, sizes that do not match, is_causal for one dimension, another scale or soft cap, 2^32 rows or 2^31
            columns.
        TypeError: None for `x`, another dtype.
        NotImplementedError: more than 16 leading dimensions that no single stride describes; a tensor that is sparse,
            nested or otherwise not dense; a gradient of the mask, in forward mode, or of the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.softmax(x, mask, scale=scale, is_causal=is_causal, soft_cap=soft_cap)


def log_softmax(
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    is_causal: bool = False,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """The logarithm of `softmax`, of scores that take no part -inf. Arguments, gradient and errors as in `softmax`."""
    return ops.log_softmax(x, mask, scale=scale, is_causal=is_causal, soft_cap=soft_cap)


def _register(op: str) -> None:
    @torch.library.register_fake(add_op_namespace_prefix(op))
    def _(
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        scale: float = 1.0,
        is_causal: bool = False,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        _C.check_softmax(op, x, mask, scale, is_causal, soft_cap)
        return x.new_empty(x.shape)

    @torch.library.register_fake(add_op_namespace_prefix(f"{op}_backward"))
    def _(
        grad: torch.Tensor,
        out: torch.Tensor,
        x: torch.Tensor | None,
        *,
        scale: float = 1.0,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        _C.check_softmax_backward(f"{op}_backward", grad, out, x, scale, soft_cap)
        return out.new_empty(out.shape)

    def setup_context(ctx, inputs: tuple, keyword_only_inputs: dict, output: torch.Tensor) -> None:
        if any(ctx.needs_input_grad[1:2]):
            raise NotImplementedError(
                f"{add_op_namespace_prefix(op)}: no gradient for mask, which requires grad; pass it detached"
            )
        ctx.options = {name: keyword_only_inputs[name] for name in ("scale", "soft_cap")}
        ctx.save_for_backward(output, inputs[0] if ctx.options["soft_cap"] is not None else None)

    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return getattr(ops, f"{op}_backward")(grad, *ctx.saved_tensors, **ctx.options), None

    torch.library.register_autograd(add_op_namespace_prefix(op), backward, setup_context=setup_context)


for _op in ("softmax", "log_softmax"):
    _register(_op)
