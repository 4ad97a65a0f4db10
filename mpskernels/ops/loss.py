"""Losses of language models."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`lse - logits[target]` for each row, with `lse = log(sum(exp(logits)))`, as `torch.nn.functional.cross_entropy`.

    Label smoothing: Szegedy et al., 2016. z-loss: PaLM (Chowdhery et al., 2022). Soft cap: Gemma 2 (2024).

    Args:
        logits: `(..., classes)`, float32, float16 or bfloat16; the classes last, unlike torch's of more than two
            dimensions: pass `logits.movedim(1, -1)`. Any strides are read in place.
        targets: `(...)`, int32 or int64, a class for each row. A target that is neither a class nor `ignore_index`
            makes the loss and the gradient of its row NaN, and so a mean or sum; nothing is read out of bounds.
        ignore_index: rows of this target have no loss and no gradient, and do not count in the mean.
        label_smoothing: from 0 to 1; that share of the target is spread over all classes.
        z_loss: adds `z_loss * lse ** 2` to each row.
        soft_cap: turns a logit x into `soft_cap * tanh(x / soft_cap)` first; positive.
        reduction: "mean" over the rows that are not ignored (NaN where there is none), "sum" or "none".

    All are on `mps`. There may be no rows.

    Returns:
        A scalar, or with "none" the shape of `targets`; in float32, whatever the dtype of the logits. Computed in
        float32. A logit below -3e38, such as -inf, has no part in the sum. Differentiable in the logits, once: forward
        reads them once and keeps them and lse, backward reads them once and writes the gradient once. The same call
        gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `logits` (all on `meta` gives the shape
            alone), a scalar for logits, sizes that do not match, no classes, another option, 2^32 rows or 2^31 classes.
        TypeError: None for a tensor, another dtype.
        NotImplementedError: more than 16 leading dimensions that no single stride describes; a tensor that is sparse,
            nested or otherwise not dense; a gradient in forward mode, or of the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.cross_entropy(
        logits,
        targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        reduction=reduction,
    )[0]


def cross_entropy_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient, in the dtype of the logits, from one launch over them. Neither is differentiable.

    A row of up to 32768 classes in float32, 65536 in float16 and bfloat16, is read once; a longer one a second time for
    the gradient, from cache where it still is there. Arguments and errors as in `cross_entropy`.
    """
    loss, _, _, gradient = ops.cross_entropy(
        logits.detach(),
        targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        reduction=reduction,
        gradient=True,
    )
    return loss, gradient


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
) -> torch.Tensor:
    """`cross_entropy(hidden @ weight.T, targets)` that never holds more than `chunk` rows of logits.

    Args:
        hidden: `(..., columns)`, float32, float16 or bfloat16, whose leading dimensions one stride describes.
        weight: `(classes, columns)`, in the dtype of `hidden`; any strides.
        targets: `(...)`, int32 or int64, as in `cross_entropy`, and so are the other options.
        chunk: rows of logits at a time; by default as many as make 2^26 logits, at least 64.

    Returns:
        As `cross_entropy`. Logits are rounded to the dtype of `hidden`, as those of a linear layer are. Differentiable
        in hidden and weight, once. Scratch memory at any time: `chunk * classes` logits, and in backward one block of
        the gradient that is made of them, of `chunk` rows of hidden or as large a share of weight. Backward computes
        the logits again: for hidden in chunks of rows, for weight in chunks of classes as large, so that each gradient
        is rounded once and nothing is summed up over chunks. That is 4 products for two gradients.

    Raises: as `cross_entropy`; NotImplementedError where no stride describes the leading dimensions.
    """
    return ops.linear_cross_entropy(
        hidden,
        weight,
        targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        reduction=reduction,
        chunk=chunk,
    )[0]


def _scalars(targets: torch.Tensor, reduction: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def empty(shape):
        return targets.new_empty(shape, dtype=torch.float32)

    loss = empty(targets.shape if reduction == "none" else ())
    return loss, empty(targets.shape), empty(1 if reduction == "mean" else 0)


@torch.library.register_fake(add_op_namespace_prefix("cross_entropy"))
def _(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
    gradient: bool = False,
) -> tuple[torch.Tensor, ...]:
    _C.check_cross_entropy("cross_entropy", logits, targets, ignore_index, label_smoothing, z_loss, soft_cap, reduction)
    return *_scalars(targets, reduction), logits.new_empty(logits.shape if gradient else 0)


@torch.library.register_fake(add_op_namespace_prefix("cross_entropy_backward"))
def _(
    grad: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    scale: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    _C.check_cross_entropy_backward(
        grad, logits, targets, lse, scale, ignore_index, label_smoothing, z_loss, soft_cap, reduction
    )
    return logits.new_empty(logits.shape)


@torch.library.register_fake(add_op_namespace_prefix("linear_cross_entropy"))
def _(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
) -> tuple[torch.Tensor, ...]:
    _C.check_linear_cross_entropy(
        "linear_cross_entropy",
        hidden,
        weight,
        targets,
        ignore_index,
        label_smoothing,
        z_loss,
        soft_cap,
        reduction,
        chunk,
    )
    return _scalars(targets, reduction)


@torch.library.register_fake(add_op_namespace_prefix("linear_cross_entropy_backward"))
def _(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    scale: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
    hidden_gradient: bool = True,
    weight_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_linear_cross_entropy_backward(
        grad,
        hidden,
        weight,
        targets,
        lse,
        scale,
        ignore_index,
        label_smoothing,
        z_loss,
        soft_cap,
        reduction,
        chunk,
    )
    return (
        hidden.new_empty(hidden.shape if hidden_gradient else 0),
        weight.new_empty(weight.shape if weight_gradient else 0),
    )


def _setup_context(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    ctx.set_materialize_grads(False)  # of lse and scale there are none
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs, *output[1:3])
    ctx.options = {name: value for name, value in keyword_only_inputs.items() if name != "gradient"}


def _backward(ctx, grad: torch.Tensor, *_) -> tuple[torch.Tensor, None]:
    return ops.cross_entropy_backward(grad, *ctx.saved_tensors, **ctx.options), None


def _linear_backward(ctx, grad: torch.Tensor, *_) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
    needed = ctx.needs_input_grad[:2]
    gradients = ops.linear_cross_entropy_backward(
        grad, *ctx.saved_tensors, **ctx.options, hidden_gradient=needed[0], weight_gradient=needed[1]
    )
    return *(t if need else None for t, need in zip(gradients, needed, strict=True)), None


torch.library.register_autograd(add_op_namespace_prefix("cross_entropy"), _backward, setup_context=_setup_context)
torch.library.register_autograd(
    add_op_namespace_prefix("linear_cross_entropy"), _linear_backward, setup_context=_setup_context
)
