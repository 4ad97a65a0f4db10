"""Matrix products, and what models do around them."""

import math

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The matrix product of `a` and `b`, with the shape rules of `torch.matmul`.

    Args:
        a: `(..., m, k)`, or `(k,)`, which stands for `(1, k)` with the 1 left out of the result.
        b: `(..., k, n)`, or `(k,)`, which stands for `(k, 1)` with the 1 left out of the result.

    Both are float32, float16 or bfloat16, of the same dtype, on `mps`; under `torch.autocast` they are cast as those of
    `torch.matmul` are. Batch dimensions broadcast. Any strides are read in place: transposed, sliced and expanded views
    cost no copy, as long as at most 8 batch dimensions remain after those that one stride describes are merged. Sizes
    may be 0 or 1; k = 0 gives zeros.

    Returns:
        `(..., m, n)`, contiguous, in the dtype of `a`. Products are summed in float32 and rounded once: in float16 and
        bfloat16 the root mean square error is that of one rounding (within 0.5 %), in float32 at most 1.03 times that
        of sums in the order of k. The same call gives the same bits every time. Differentiable in reverse mode, any
        number of times: gradients are products of transposed views, in which the dimensions of a broadcast operand are
        summed with k.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of the other (both on `meta` gives the shape
            alone), a scalar, sizes that do not match.
        TypeError: None for a tensor, another dtype, or two dtypes.
        NotImplementedError: more batch dimensions or a larger grid than the kernels take; a tensor that is sparse,
            nested or otherwise not dense; a gradient in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.matmul(a, b)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`activation(x @ weight.T + bias) + residual`, rounded once.

    Args:
        x: `(..., k)`.
        weight: `(n, k)`.
        bias: `(n,)`.
        activation: "none", "relu", "gelu" (of the exact normal distribution: Hendrycks and Gimpel, 2016), "gelu_tanh"
            (its approximation by tanh) or "silu" (`x * sigmoid(x)`).
        residual: `(..., n)`, the leading dimensions those of `x`.

    All are float32, float16 or bfloat16, of the same dtype, on `mps`; under `torch.autocast` they are cast as those of
    `torch.nn.functional.linear` are. Any strides are read in place, with the limit of `matmul`, which the gradient of
    weight has for those of x and of the gradient of the result together. Sizes may be 0.

    Returns:
        `(..., n)`, contiguous, in the dtype of `x`. Summed, activated and added in float32. The same call gives the
        same bits every time. Differentiable in reverse mode; where there is an activation, what it is applied to is
        kept for that, rounded, and the gradient itself has none.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `x` (all on `meta` gives the shape alone), a
            scalar, sizes that do not match, another activation.
        TypeError: None for a tensor that is needed, another dtype, or several dtypes.
        NotImplementedError: more batch dimensions or a larger grid than the kernels take; a tensor that is sparse,
            nested or otherwise not dense; a gradient in forward mode.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.linear(x, weight, bias, activation=activation, residual=residual)


def gated_linear(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, *, activation: str = "silu"
) -> torch.Tensor:
    """`activation(x @ w_gate.T) * (x @ w_up.T)`: SwiGLU with "silu", GEGLU with "gelu", in one pass over x.

    GLU variants improve transformer: Shazeer, 2020.

    Args:
        x: `(..., k)`.
        w_gate: `(n, k)`.
        w_up: `(n, k)`.
        activation: one of those of `linear`.

    Dtypes, devices, strides and errors are those of `linear`.

    Returns:
        `(..., n)`, contiguous, in the dtype of `x`. Computed in float32 and rounded once. Differentiable in reverse
        mode; both products are kept for that, rounded.
    """
    return ops.gated_linear(x, w_gate, w_up, activation=activation)


def grouped_matmul(
    x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """The rows of each group times the matrix of that group, all groups in one launch: the experts of a mixture.

    Args:
        x: `(rows, k)`, sorted by group; or, with indices, `(tokens, k)`.
        w: `(groups, k, n)`.
        offsets: `(groups,)`, int32: group g is the rows from `offsets[g - 1]`, or 0, up to `offsets[g]`, as in
            `torch.nn.functional.grouped_mm`. Groups may be empty. Offsets are read on the device, unchecked: they must
            not decrease; outside of 0 to rows they count as the nearer of the two.
        indices: `(rows,)`, int32: row r is `x[indices[r]]`, read in place. A row outside of x is zeros.

    x and w are float32, float16 or bfloat16, of the same dtype; all are on `mps`. Any strides of x and w are read in
    place, and sizes may be 0. `torch.autocast` casts x and w.

    Returns:
        `(rows, n)`, contiguous, in the dtype of `x`; zeros for rows after the last group. Summed in float32 and rounded
        once. The same call gives the same bits every time. Differentiable in reverse mode, once.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `x` (all on `meta` gives the shape alone),
            sizes that do not match, 2^31 rows.
        TypeError: None for a tensor that is needed, another dtype, or several dtypes.
        NotImplementedError: a larger grid than the kernels take; a tensor that is sparse, nested or otherwise not
            dense; a gradient in forward mode, or of the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.grouped_matmul(x, w, offsets, indices)


@torch.library.register_fake(add_op_namespace_prefix("matmul"))
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    sizes = _C.check_matmul(a, b)
    return a.new_empty(sizes)


@torch.library.register_fake(add_op_namespace_prefix("linear"))
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    _C.check_linear("linear", x, weight, bias, activation, residual)
    return x.new_empty([*x.shape[:-1], weight.shape[0]])


@torch.library.register_fake(add_op_namespace_prefix("linear_saving"))
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_linear("linear", x, weight, bias, activation, residual)
    out = x.new_empty([*x.shape[:-1], weight.shape[0]])
    return out, x.new_empty(0 if activation == "none" else out.shape)


@torch.library.register_fake(add_op_namespace_prefix("linear_backward"))
def _(
    grad: torch.Tensor, preactivation: torch.Tensor | None, *, activation: str, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_linear_backward(grad, preactivation, activation, bias)
    return grad.new_empty(0 if preactivation is None else grad.shape), grad.new_empty(grad.shape[-1] if bias else 0)


@torch.library.register_fake(add_op_namespace_prefix("gated_linear"))
def _(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, *, activation: str = "silu") -> torch.Tensor:
    _C.check_gated_linear("gated_linear", x, w_gate, w_up, activation)
    return x.new_empty([*x.shape[:-1], w_gate.shape[0]])


@torch.library.register_fake(add_op_namespace_prefix("gated_linear_saving"))
def _(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _C.check_gated_linear("gated_linear", x, w_gate, w_up, activation)
    out, gate, up = (x.new_empty([*x.shape[:-1], w_gate.shape[0]]) for _ in range(3))
    return out, gate, up


@torch.library.register_fake(add_op_namespace_prefix("gated_linear_backward"))
def _(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    _C.check_gated_linear_backward(grad, gate, up, activation)
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


@torch.library.register_fake(add_op_namespace_prefix("add_matmuls"))
def _(a: torch.Tensor, b: torch.Tensor, second_a: torch.Tensor, second_b: torch.Tensor) -> torch.Tensor:
    _C.check_add_matmuls(a, b, second_a, second_b)
    return a.new_empty([a.shape[0], b.shape[1]])


@torch.library.register_fake(add_op_namespace_prefix("sum_matmuls"))
def _(a: torch.Tensor, b: torch.Tensor, dims: int) -> torch.Tensor:
    return a.new_empty(_C.check_sum_matmuls(a, b, dims))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """What is contiguous, as a matrix of rows."""
    return x.view(math.prod(x.shape[:-1]), x.shape[-1])


def _product_of_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`(..., n)` and `(..., k)` to `(n, k)`: the outer products of their rows, summed."""
    if left.dim() == 1:
        left, right = left.unsqueeze(0), right.unsqueeze(0)
    return ops.sum_matmuls(left.mT, right, left.dim() - 2)


def _summed_product(left: torch.Tensor, right: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`left @ right`, summed over the batch dimensions that broadcasting gave to an operand of that shape."""
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    own = [1] * (len(batch) - len(shape) + 2) + list(shape[:-2])
    summed = [d for d in range(len(batch)) if own[d] == 1 and batch[d] != 1]
    if not summed:
        return ops.matmul(left, right).reshape(shape)
    order = [*(d for d in range(len(batch)) if d not in summed), *summed, len(batch), len(batch) + 1]
    left = left.expand(*batch, *left.shape[-2:]).permute(order)
    right = right.expand(*batch, *right.shape[-2:]).permute(order)
    return ops.sum_matmuls(left, right, len(summed)).reshape(shape)


def _save_inputs(ctx, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    a, b = ctx.saved_tensors
    if b.dim() == 1:
        grad = grad.unsqueeze(-1)
    if a.dim() == 1:
        grad = grad.unsqueeze(-2)
    rows = a.unsqueeze(0) if a.dim() == 1 else a
    columns = b.unsqueeze(1) if b.dim() == 1 else b
    of_a = of_b = None
    if ctx.needs_input_grad[0]:
        of_a = _summed_product(grad, columns.mT, rows.shape).reshape(a.shape)
    if ctx.needs_input_grad[1]:
        of_b = _summed_product(rows.mT, grad, columns.shape).reshape(b.shape)
    return of_a, of_b


torch.library.register_autograd(add_op_namespace_prefix("matmul"), _matmul_backward, setup_context=_save_inputs)


def _sum_matmuls_setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
    a, b, ctx.dims = inputs
    ctx.save_for_backward(a, b)


def _sum_matmuls_backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    a, b = ctx.saved_tensors
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    grad = grad.reshape(*grad.shape[:-2], *[1] * ctx.dims, *grad.shape[-2:]).expand(*batch, *grad.shape[-2:])
    of_a = _summed_product(grad, b.mT, a.shape) if ctx.needs_input_grad[0] else None
    of_b = _summed_product(a.mT, grad, b.shape) if ctx.needs_input_grad[1] else None
    return of_a, of_b, None


torch.library.register_autograd(
    add_op_namespace_prefix("sum_matmuls"), _sum_matmuls_backward, setup_context=_sum_matmuls_setup_context
)


def _linear_setup_context(ctx, inputs: tuple, output: tuple) -> None:
    x, weight, _, activation, _ = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    preactivation = None if activation == "none" else output[1]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, preactivation)
    ctx.activation = activation
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _linear_backward(ctx, grad: torch.Tensor, _) -> tuple[torch.Tensor | None, ...]:
    x, weight, preactivation = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _, needs_residual = ctx.needs_input_grad
    of_x = of_weight = of_bias = None
    if grad is None:
        return None, None, None, None, None
    if needs_x or needs_weight or needs_bias:
        of_sum = grad  # of the product and its bias
        if preactivation is not None:
            of_sum, of_bias = ops.linear_backward(grad, preactivation, activation=ctx.activation, bias=needs_bias)
        elif needs_bias and grad.requires_grad and torch.is_grad_enabled():
            ones = grad.new_ones(()).expand(*grad.shape[:-1], 1)
            of_bias = _product_of_rows(ones, grad).squeeze(0)  # has a gradient itself
        elif needs_bias:
            _, of_bias = ops.linear_backward(grad, None, activation="none", bias=True)
        if needs_x:
            of_x = ops.matmul(of_sum, weight)
        if needs_weight:
            of_weight = _product_of_rows(of_sum, x)
    return of_x, of_weight, of_bias if needs_bias else None, None, grad if needs_residual else None


torch.library.register_autograd(
    add_op_namespace_prefix("linear_saving"), _linear_backward, setup_context=_linear_setup_context
)


def _gated_linear_setup_context(ctx, inputs: tuple, output: tuple) -> None:
    x, w_gate, w_up, activation = inputs
    ctx.save_for_backward(x, w_gate, w_up, output[1], output[2])
    ctx.activation = activation
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _gated_linear_backward(ctx, grad: torch.Tensor, *_) -> tuple[torch.Tensor | None, ...]:
    x, w_gate, w_up, gate, up = ctx.saved_tensors
    needs_x, needs_gate, needs_up, _ = ctx.needs_input_grad
    if grad is None:
        return None, None, None, None
    of_gate, of_up = ops.gated_linear_backward(grad, gate, up, activation=ctx.activation)
    of_x = of_w_gate = of_w_up = None
    if needs_x:
        of_x = ops.add_matmuls(_rows(of_gate), w_gate, _rows(of_up), w_up).view(x.shape)
    if needs_gate:
        of_w_gate = _product_of_rows(of_gate, x)
    if needs_up:
        of_w_up = _product_of_rows(of_up, x)
    return of_x, of_w_gate, of_w_up, None


torch.library.register_autograd(
    add_op_namespace_prefix("gated_linear_saving"), _gated_linear_backward, setup_context=_gated_linear_setup_context
)


@torch.library.register_fake(add_op_namespace_prefix("grouped_matmul"))
def _(x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
    _C.check_grouped_matmul(x, w, offsets, indices)
    return x.new_empty([(x if indices is None else indices).shape[0], w.shape[2]])


@torch.library.register_fake(add_op_namespace_prefix("grouped_matmul_backward"))
def _(grad: torch.Tensor, x: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    _C.check_grouped_matmul_backward(grad, x, offsets, indices)
    return x.new_empty([offsets.shape[0], x.shape[1], grad.shape[1]])


@torch.library.register_fake(add_op_namespace_prefix("grouped_matmul_scatter"))
def _(rows: torch.Tensor, indices: torch.Tensor, count: int) -> torch.Tensor:
    _C.check_grouped_matmul_scatter(rows, indices, count)
    return rows.new_empty([count, rows.shape[1]])


def _grouped_matmul_backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, w, offsets, indices = ctx.saved_tensors
    of_x = of_w = None
    if ctx.needs_input_grad[0]:
        of_x = ops.grouped_matmul(grad, w.mT, offsets)
        if indices is not None:
            of_x = ops.grouped_matmul_scatter(of_x, indices, x.shape[0])
    if ctx.needs_input_grad[1]:
        of_w = ops.grouped_matmul_backward(grad, x, offsets, indices)
    return of_x, of_w, None, None


torch.library.register_autograd(
    add_op_namespace_prefix("grouped_matmul"), _grouped_matmul_backward, setup_context=_save_inputs
)
