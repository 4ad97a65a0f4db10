"""torch's own samples of matrix products, forward and gradient, through our ops."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPE_IDS
from torch.testing._internal.common_methods_invocations import op_db

import mpskernels

INFOS = {(info.name, info.variant_test_name): info for info in op_db}


def addmm(residual, a, b, *, beta=1, alpha=1):
    residual = (residual * beta).expand(a.size(0), b.size(1))
    return mpskernels.linear(a * alpha, b.t(), residual=residual)


def linear(x, weight, bias=None):
    if weight.dim() == 1:  # torch takes a vector for a weight; ours is a matrix
        out = mpskernels.matmul(x, weight)
        return out if bias is None else None
    return mpskernels.linear(x, weight, bias)


OPS = {
    ("matmul", ""): (mpskernels.matmul, torch.matmul),
    ("__rmatmul__", ""): (lambda a, b: mpskernels.matmul(b, a), lambda a, b: torch.matmul(b, a)),
    ("mm", ""): (mpskernels.matmul, torch.mm),
    ("bmm", ""): (mpskernels.matmul, torch.bmm),
    ("mv", ""): (mpskernels.matmul, torch.mv),
    ("addmm", ""): (addmm, torch.addmm),
    ("nn.functional.linear", ""): (linear, F.linear),
}
# Of the largest value: roundings of the output and, in gradients, of what the output's gradient is.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def differentiable(tree):
    """Leaves that require grad, of the same strides."""
    leaves = []

    def leaf(t):
        if isinstance(t, torch.Tensor) and t.is_floating_point():
            t = t.detach().requires_grad_()
            leaves.append(t)
        return t

    return torch.utils._pytree.tree_map(leaf, tree), leaves


def close(actual, expected, dtype):
    assert (actual.shape, actual.dtype, actual.device.type) == (expected.shape, dtype, "mps")
    if expected.numel():
        error = (actual.detach().cpu().double() - expected.detach()).abs().max()
        assert error <= TOLERANCE[dtype] * expected.detach().abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("dtype", DTYPE_IDS, ids=DTYPE_IDS.get)
@pytest.mark.parametrize("name", OPS, ids=lambda name: name[0])
def test_samples_of_torch(name, dtype):
    ours, stock = OPS[name]
    ran = 0
    for sample in INFOS[name].sample_inputs("cpu", dtype, requires_grad=False):
        inputs = (sample.input, *sample.args)
        (args, kwargs), leaves = differentiable(
            torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("mps"), (inputs, sample.kwargs))
        )
        out = ours(*args, **kwargs)
        if out is None:
            continue
        (wide_args, wide_kwargs), wide_leaves = differentiable(
            torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.double(), (inputs, sample.kwargs))
        )
        expected = stock(*wide_args, **wide_kwargs)
        close(out, expected, dtype)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        out.backward(grad.to("mps"))
        expected.backward(grad.double())
        for leaf, wide in zip(leaves, wide_leaves, strict=True):
            close(leaf.grad, wide.grad, dtype)
        ran += 1
    assert ran > 0
