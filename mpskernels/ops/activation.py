"""Gated linear units: `activation(gate) * up`."""

import torch

from .. import _C
from .._ops import add_op_namespace_prefix, ops


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """`silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.

    GLU variants improve transformer: Shazeer, 2020.

    Args:
        gate: `(...)`, float32, float16 or bfloat16. Any strides are read in place.
        up: the shape and dtype of `gate`; or None, and the last dimension of `gate` holds both: its first half the
            gate, its second half up.

    All are on `mps`, with at most 16 dimensions that no single stride describes. Sizes may be 0.

    Returns:
        `(...)`, or `(..., n)` where `gate` is a packed `(..., 2 * n)`; contiguous, in the dtype of `gate`. Computed in
        float32 and rounded once. Differentiable in reverse mode, once: the gradient of a packed gate is one packed
        tensor, and nothing but the arguments is kept for it. The same call gives the same bits every time.

    Raises:
        ValueError: a tensor that is not on `mps`, or not on the device of `gate` (all on `meta` gives the shape alone),
            shapes that differ, a last dimension that is odd where there is no `up`.
        TypeError: None for `gate`, another dtype, or two dtypes.
        NotImplementedError: more dimensions; a tensor that is sparse, nested or otherwise not dense; a gradient in
            forward mode, or of the gradient.
        RuntimeError: what is no tensor at all; the library of kernels cannot be read.
    """
    return ops.swiglu(gate, up)


def geglu(gate: torch.Tensor, up: torch.Tensor | None = None, *, approximate: str = "none") -> torch.Tensor:
    """`gelu(gate) * up`, with `gelu(x) = x * P(X < x)` for a standard normal X.

    Gaussian error linear units: Hendrycks and Gimpel, 2016.

    Args:
        gate: as in `swiglu`.
        up: as in `swiglu`.
        approximate: "none", or "tanh" for the approximation `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`,
            as in `torch.nn.functional.gelu`.

    Returns, raises: as `swiglu`; ValueError for another `approximate`.
    """
    return ops.geglu(gate, up, approximate=approximate)


def reglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """`max(gate, 0) * up`. Arguments, result and errors as in `swiglu`; NaN in `gate` stays NaN."""
    return ops.reglu(gate, up)


def _register(op: str) -> None:
    """The fakes and the gradient of one of the ops, whose arguments differ in `approximate` alone."""

    def out_shape(gate: torch.Tensor, up: torch.Tensor | None) -> list[int]:
        return [*gate.shape] if up is not None else [*gate.shape[:-1], gate.shape[-1] // 2]

    @torch.library.register_fake(add_op_namespace_prefix(op))
    def _(gate: torch.Tensor, up: torch.Tensor | None = None, *, approximate: str = "none") -> torch.Tensor:
        _C.check_gated(op, gate, up, approximate)
        return gate.new_empty(out_shape(gate, up))

    @torch.library.register_fake(add_op_namespace_prefix(f"{op}_backward"))
    def _(
        grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, *, approximate: str = "none"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _C.check_gated_backward(f"{op}_backward", grad, gate, up, approximate)
        return gate.new_empty(gate.shape), gate.new_empty(0 if up is None else up.shape)

    def setup_context(ctx, inputs: tuple, output: torch.Tensor, keyword_only_inputs: dict | None = None) -> None:
        ctx.save_for_backward(*inputs)
        ctx.options = keyword_only_inputs or {}

    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = getattr(ops, f"{op}_backward")(grad, gate, up, **ctx.options)
        return of_gate, None if up is None else of_up

    torch.library.register_autograd(add_op_namespace_prefix(op), backward, setup_context=setup_context)


for _op in ("swiglu", "geglu", "reglu"):
    _register(_op)
