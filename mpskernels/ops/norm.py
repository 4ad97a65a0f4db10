"""Normalization over the last dimension or over groups of channels, and what is fused with it."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, offset: float = 0.0) -> Tensor:
    """Root mean square normalization over the last dimension: `x / sqrt(mean(x * x) + eps) * (weight + offset)`.

    Root mean square layer normalization: Zhang and Sennrich, 2019.

    Args:
        x: `(..., columns)`, float32, float16 or bfloat16, of at most 17 dimensions. Any strides are read in place.
        weight: `(columns,)`, in the dtype of `x` or in float32.
        eps: finite in float32, not negative. The smallest normal float32 stands in for less, so that a row of zeros
            stays zero.
        offset: what is added to the weight, finite in float32: 1.0 for Gemma. Without a weight it is not used.

    All are on `mps`. There may be no rows, or no columns.

    Returns:
        `(..., columns)`, contiguous, in the dtype of `x`. Computed in float32 and rounded once, after the weight; no
        size of numbers that the dtype of `x` holds passes the range of what is in between. A row with a NaN becomes
        NaN. Differentiable in reverse mode, once; nothing but the arguments is kept for it. The same call gives the
        same bits every time, as do its gradients.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `x` (both on `meta` gives the shape alone), a
            scalar, more dimensions, sizes that do not match, another eps or offset, 2^32 rows or 2^31 columns.
        TypeError: None for `x`, another dtype.
        NotImplementedError: a tensor that is sparse, nested or otherwise not dense; a gradient in forward mode, or of
            the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.rms_norm(x, weight, eps, offset=offset)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Layer normalization over the last dimension: `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.

    The variance is the mean of squared deviations from the mean, which are taken after the mean is known.
    Layer normalization: Ba, Kiros and Hinton, 2016.

    Args:
        x, weight, eps: as in `rms_norm`.
        bias: `(columns,)`, in the dtype of the weight; without a weight, in that of `x` or in float32.

    Returns, raises: as `rms_norm`. A row with an infinity becomes NaN too; one of equal values becomes the bias.
    """
    return ops.layer_norm(x, weight, bias, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of `x + residual`, and that sum, in one launch.

    Args:
        x, weight, eps, offset: as in `rms_norm`.
        residual: the shape and dtype of `x`. Any strides are read in place.

    Returns:
        The norm, of the sum before it is rounded, and the sum; each `(..., columns)`, contiguous, in the dtype of `x`.
        Differentiable as `rms_norm`; the gradient takes its statistics from the rounded sum, which is all that is kept.

    Raises: as `rms_norm`.
    """
    return ops.add_rms_norm(x, residual, weight, eps, offset=offset)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """`layer_norm` of `x + residual`, and that sum, in one launch.

    Arguments as in `layer_norm` and `add_rms_norm`; returns and raises as `add_rms_norm`.
    """
    return ops.add_layer_norm(x, residual, weight, bias, eps)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, norm_before_gate: bool = True
) -> Tensor:
    """`rms_norm(x, weight, eps) * silu(gate)`; or, not `norm_before_gate`, `rms_norm(x * silu(gate), weight, eps)`.

    The first is the norm of gated linear attention and delta nets, the second that of Mamba 2 (Dao and Gu, 2024).

    Args:
        x, weight, eps: as in `rms_norm`.
        gate: the shape and dtype of `x`. Any strides are read in place.

    Returns, raises: as `rms_norm`; a product of x and gate that passes float32 counts as an infinity.
    """
    return ops.gated_rms_norm(x, gate, weight, eps, norm_before_gate=norm_before_gate)


def modulated_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rms: bool = False,
) -> Tensor:
    """`layer_norm(x, weight, bias, eps) * (1 + scale) + shift`, the last two for each sample; `rms`: of the RMS norm.

    The adaptive layer norm of diffusion transformers (Peebles and Xie, 2023).

    Args:
        x: `(samples, ..., columns)`; it, weight, bias and eps as in `layer_norm`.
        scale, shift: `(samples, columns)`, both in the dtype of `x` or both in float32. Any strides are read in place,
            such as those of chunks of one projection. For values of each token, make tokens the samples.

    Returns, raises: as `layer_norm`.
    """
    return ops.modulated_norm(x, scale, shift, weight, bias, eps, rms=rms)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    silu: bool = False,
) -> Tensor:
    """Group normalization: over the positions and the channels of each of `num_groups` groups of each sample.

    `act((x - mean) / sqrt(variance + eps) * weight + bias)`, with act nothing, or `silu`. Wu and He, 2018.

    Args:
        x: `(samples, channels, ...)`, float32, float16 or bfloat16, of at most 17 dimensions. Channels may come first
            or last in memory, and samples, channels and positions have any stride; but one must describe all positions.
        num_groups: a divisor of the channels.
        weight, bias: `(channels,)`, both in the dtype of `x` or both in float32.
        eps: as in `rms_norm`.

    Returns:
        `x.shape`, in the dtype of `x`; channels last in memory for an `x` that is contiguous so, of 4 or 5 dimensions,
        else contiguous. Differentiable, deterministic and exact as `layer_norm`. Groups of up to 16384 elements take
        one launch that reads x once; larger ones are divided, and two launches (three beyond 2^19 elements) read x
        twice.

    Raises: as `layer_norm`; ValueError for a `num_groups` that is no divisor; NotImplementedError for positions of
        several strides.
    """
    return ops.group_norm(x, num_groups, weight, bias, eps, silu=silu)


class _Op(NamedTuple):
    """An op's schema and that of its backward op, whose arguments end with grad_x and grad_parameters."""

    inputs: str
    options: dict[str, float | bool]  # keyword-only, with defaults
    outputs: str
    backward: str  # arguments of the backward op, in order
    gradients: str  # what the backward op returns gradients of


_OPS = {
    "rms_norm": _Op("x weight eps", {"offset": 0.0}, "out", "grad x weight eps offset", "x weight"),
    "layer_norm": _Op("x weight bias eps", {}, "out", "grad x weight bias eps", "x weight bias"),
    "add_rms_norm": _Op(
        "x residual weight eps",
        {"offset": 0.0},
        "out residual_out",
        "grad grad_residual residual_out weight eps offset",
        "residual_out weight",
    ),
    "add_layer_norm": _Op(
        "x residual weight bias eps",
        {},
        "out residual_out",
        "grad grad_residual residual_out weight bias eps",
        "residual_out weight bias",
    ),
    "gated_rms_norm": _Op(
        "x gate weight eps",
        {"norm_before_gate": True},
        "out",
        "grad x gate weight eps norm_before_gate",
        "x gate weight",
    ),
    "modulated_norm": _Op(
        "x scale shift weight bias eps",
        {"rms": False},
        "out",
        "grad x scale weight bias eps rms",
        "x scale shift weight bias",
    ),
}
_PARAMETERS = {"weight", "bias", "scale", "shift"}  # their gradients are sums over rows
_LIKE = {"shift": "scale"}  # has its shape and dtype, and stands for it in the backward op


def _register(name: str, op: _Op) -> None:
    """The fakes and the gradient of an op."""
    inputs, arguments = op.inputs.split(), op.backward.split()

    @torch.library.register_fake(add_op_namespace_prefix(name))
    def _(*args, **options):
        getattr(_C, f"check_{name}")(*args, *(op.options | options).values())
        outputs = tuple(args[0].new_empty(args[0].shape) for _ in op.outputs.split())
        return outputs if len(outputs) > 1 else outputs[0]

    @torch.library.register_fake(add_op_namespace_prefix(f"{name}_backward"))
    def _(*args):
        *args, grad_x, grad_parameters = args
        getattr(_C, f"check_{name}_backward")(*args)
        values = dict(zip(arguments, args, strict=True))

        def fake(of: str) -> Tensor:
            like, wanted = values[_LIKE.get(of, of)], grad_parameters if of in _PARAMETERS else grad_x
            return args[0].new_empty(0) if like is None or not wanted else like.new_empty(like.shape)

        return tuple(map(fake, op.gradients.split()))

    def setup_context(ctx, inputs: tuple, output: Tensor | tuple, keyword_only_inputs: dict | None = None) -> None:
        outputs = dict(zip(op.outputs.split(), output if isinstance(output, tuple) else (output,), strict=True))
        values = dict(zip(op.inputs.split(), inputs, strict=True)) | (keyword_only_inputs or {}) | outputs
        kept = {argument: values[argument] for argument in arguments if not argument.startswith("grad")}
        ctx.tensors = [key for key, value in kept.items() if isinstance(value, Tensor)]
        ctx.others = {key: value for key, value in kept.items() if not isinstance(value, Tensor)}
        ctx.save_for_backward(*(kept[key] for key in ctx.tensors))
        ctx.set_materialize_grads(False)

    def backward(ctx, grad: Tensor | None, grad_residual: Tensor | None = None) -> tuple[Tensor | None, ...]:
        needed = {key for key, needs in zip(inputs, ctx.needs_input_grad, strict=True) if needs}
        if grad is None:  # the sum was used and the norm was not
            found = {"residual_out": grad_residual}
        else:
            values = dict(zip(ctx.tensors, ctx.saved_tensors, strict=True)) | ctx.others
            values |= {"grad": grad, "grad_residual": grad_residual}
            gradients = getattr(ops, f"{name}_backward")(
                *(values[argument] for argument in arguments), bool(needed - _PARAMETERS), bool(needed & _PARAMETERS)
            )
            found = dict(zip(op.gradients.split(), gradients, strict=True))
        if "residual_out" in found:
            found["x"] = found["residual"] = found["residual_out"]
        return tuple(found.get(key) if key in needed else None for key in inputs)

    torch.library.register_autograd(add_op_namespace_prefix(name), backward, setup_context=setup_context)


for _name, _op in _OPS.items():
    _register(_name, _op)


def _empty_like_x(x: Tensor) -> Tensor:
    """As csrc/norm_group.mm makes it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim())
    last = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last) and last
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=last or torch.contiguous_format)


@torch.library.register_fake(add_op_namespace_prefix("group_norm"))
def _(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool = False) -> Tensor:
    _C.check_group_norm(x, num_groups, weight, bias, eps)
    return _empty_like_x(x)


@torch.library.register_fake(add_op_namespace_prefix("group_norm_backward"))
def _(grad, x, num_groups, weight, bias, eps, silu, grad_x: bool, grad_parameters: bool) -> tuple[Tensor, ...]:
    _C.check_group_norm_backward(grad, x, num_groups, weight, bias, eps)
    parameters = (p.new_empty(p.shape) if p is not None and grad_parameters else x.new_empty(0) for p in (weight, bias))
    return _empty_like_x(x) if grad_x else x.new_empty(0), *parameters


def _group_norm_context(ctx, inputs: tuple, output: Tensor, keyword_only_inputs: dict) -> None:
    x, ctx.num_groups, weight, bias, ctx.eps = inputs
    ctx.silu = keyword_only_inputs["silu"]
    ctx.save_for_backward(x, weight, bias)


def _has_one_stride(x: Tensor) -> bool:
    """Whether one describes the dimensions from the third on."""
    sizes = [(size, stride) for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True) if size != 1]
    return all(stride == size * inner for (_, stride), (size, inner) in itertools.pairwise(sizes))


def _group_norm_gradient(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if not _has_one_stride(grad):  # as transposed or summed outputs leave it
        grad = grad.contiguous()
    need_x, _, need_weight, need_bias, _ = ctx.needs_input_grad
    of_x, of_weight, of_bias = ops.group_norm_backward(
        grad, x, ctx.num_groups, weight, bias, ctx.eps, ctx.silu, need_x, need_weight or need_bias
    )
    return of_x if need_x else None, None, of_weight if need_weight else None, of_bias if need_bias else None, None


torch.library.register_autograd(
    add_op_namespace_prefix("group_norm"), _group_norm_gradient, setup_context=_group_norm_context
)
