"""Errors of the matmul family against fp64 beside those of stock torch: of results, and of the gradient of each input.

In ULPs of the dtype. An element's is that of its exact value, or where that is smaller, because terms cancel, of the
root of the mean square of all elements.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPE_IDS, assert_accurate, random, to_mps, worst_error
from test_matmul_grouped import int32
from test_matmul_grouped import reference as by_groups

import mpskernels

halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=DTYPE_IDS.get)
# Tiles of several kinds, k in splits of all columns or of the last, few rows.
sizes = pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 96, 1024), (3, 200, 520), (129, 70, 300), (128, 512, 512), (54, 482, 768)]
)


def groups_of(m):
    """Offsets of groups, one of them empty, with rows after the last; and rows in any order, some of them twice."""
    indices = torch.randint(0, m, (m,), generator=torch.Generator().manual_seed(0)).int()
    return int32(m // 2, m // 2, m - 1), indices


# op -> ours, stock's formula by a product of matrices, the shapes of what has a gradient; and whatever comes after.
OPS = {
    "matmul": (mpskernels.matmul, lambda dot, a, b: dot(a, b), lambda m, n, k: [(m, k), (k, n)]),
    "linear": (mpskernels.linear, lambda dot, x, w: dot(x, w.mT), lambda m, n, k: [(m, k), (n, k)]),
    "linear_bias": (
        mpskernels.linear,
        lambda dot, x, w, bias: dot(x, w.mT) + bias,
        lambda m, n, k: [(m, k), (n, k), (n,)],
    ),
    "linear_silu": (
        lambda x, w, bias: mpskernels.linear(x, w, bias, activation="silu"),
        lambda dot, x, w, bias: F.silu(dot(x, w.mT) + bias),
        lambda m, n, k: [(m, k), (n, k), (n,)],
    ),
    "gated_linear": (
        mpskernels.gated_linear,
        lambda dot, x, gate, up: F.silu(dot(x, gate.mT)) * dot(x, up.mT),
        lambda m, n, k: [(m, k), (n, k), (n, k)],
    ),
    "grouped_matmul": (
        lambda x, w, offsets, _: mpskernels.grouped_matmul(x, w, offsets),
        lambda dot, x, w, offsets, _: by_groups(x, w, offsets, product=dot),
        lambda m, n, k: [(m, k), (3, k, n)],
    ),
    "gathered_matmul": (
        mpskernels.grouped_matmul,
        lambda dot, x, w, offsets, indices: by_groups(x, w, offsets, indices, product=dot),
        lambda m, n, k: [(m, k), (3, k, n)],
    ),
}
# What is made of numbers that were rounded to the dtype on their way, as stock torch keeps them too: an activation's
# argument and the gradient of that, the gradients of gathered rows before their sum.
OF_ROUNDED = {"linear_silu": (1, 2, 3), "gated_linear": (1, 2, 3), "gathered_matmul": (1,)}


class InOrder(torch.autograd.Function):
    """a @ b, and so its gradients, in float32: each product and each sum rounded, in the order of k."""

    @staticmethod
    def product(a, b):
        out = torch.zeros(a.size(0), b.size(1))
        for i in range(a.size(1)):
            out += a[:, i : i + 1] * b[i]
        return out

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return InOrder.product(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return InOrder.product(grad, b.mT), InOrder.product(a.mT, grad)


def result_and_gradients(function, tensors, rest, grad):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves, *rest)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def measured(op, dtype, m, n, k, dot, stock_dtype):
    """(number, ours, exactly, ulp in eps, stock's by `dot` in a dtype, rounded once) of the result, number 0, and of
    the gradient of each input."""
    ours, formula, shapes = OPS[op]
    tensors = [random(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes(m, n, k))]
    tensors = [t / math.sqrt(k) if i > 0 and t.dim() > 1 else t for i, t in enumerate(tensors)]  # weights
    rest, grad = groups_of(m) if "grouped" in op or "gathered" in op else (), random(m, n, dtype=dtype, seed=9)

    def stock(product, dtype):
        return result_and_gradients(
            lambda *arguments: formula(product, *arguments), [t.to(dtype) for t in tensors], rest, grad.to(dtype)
        )

    found = result_and_gradients(ours, to_mps(tensors), to_mps(rest), to_mps(grad))
    exact, rounded = stock(torch.matmul, torch.float64), stock(dot, stock_dtype)
    for number, (out, expected, other) in enumerate(zip(found, exact, rounded, strict=True)):
        size = expected.abs().maximum(expected.square().mean().sqrt())
        yield number, out, expected, torch.exp2(torch.floor(torch.log2(size))), other.to(dtype)


def assert_no_worse(out, expected, ulp, stock, *, rms, worst):
    """Root mean square error and worst error, in ULPs, are at most these functions of stock's."""

    def root_mean_square(t):
        return ((t.cpu().double() - expected) / ulp).square().mean().sqrt().item() / torch.finfo(t.dtype).eps

    assert_accurate(out, expected, scale=ulp, allowed=worst(worst_error(stock, expected, ulp)))
    ours, theirs = root_mean_square(out), root_mean_square(stock)
    print(f"root mean square {ours:.4f} ulp, stock's {theirs:.4f}")
    assert ours <= rms(theirs)


@halves
@sizes
@pytest.mark.parametrize("op", OPS)
def test_halves_are_sums_in_float32_rounded_once(op, m, n, k, dtype):
    """As stock torch's float32 results are that are rounded to the dtype: 1.005 times their root mean square error
    (measured: at most 1.0005) and 0.01 ULP more than their worst error (0.002), both of which are about all that
    rounding itself makes. So are all results, and the gradients of what nothing was rounded for before."""
    for number, out, expected, ulp, stock in measured(op, dtype, m, n, k, torch.matmul, torch.float32):
        if number not in OF_ROUNDED.get(op, ()):
            assert_no_worse(out, expected, ulp, stock, rms=lambda e: 1.005 * e, worst=lambda e: e + 0.01)


@halves
@sizes
@pytest.mark.parametrize("op", OF_ROUNDED)
def test_gradients_of_rounded_numbers_are_as_accurate_as_torchs(op, m, n, k, dtype):
    """Stock torch in the dtype saves and passes on rounded numbers as well: 1.05 times its root mean square error
    (measured: 0.53 to 1.0) and half an ULP more than its worst (0.27). They are 1.2 to 3 times those of formulas in
    float32 throughout."""
    for number, out, expected, ulp, stock in measured(op, dtype, m, n, k, torch.matmul, dtype):
        if number in OF_ROUNDED[op]:
            assert_no_worse(out, expected, ulp, stock, rms=lambda e: 1.05 * e, worst=lambda e: e + 0.5)


@sizes
@pytest.mark.parametrize("op", OPS)
def test_float32_is_as_accurate_as_sums_in_the_order_of_k(op, m, n, k):
    """Stock torch's formulas with sums of products in order, as one accumulator makes them: 1.03 times their root mean
    square error (measured: 0.2 to 1.018), 1.5 times their worst (1.26). The gradient of a gated layer's input adds up
    both its products in one sum, which is twice as long: 1.2 and 2 times (1.09 and 1.34). A CPU's BLAS adds up
    partial sums where k is long: root mean square errors are 0.2 to 1.9 times its."""
    for number, out, expected, ulp, stock in measured(op, torch.float32, m, n, k, InOrder.apply, torch.float32):
        rms, worst = (1.2, 2) if (op, number) == ("gated_linear", 1) else (1.03, 1.5)
        assert_no_worse(out, expected, ulp, stock, rms=lambda e, f=rms: f * e, worst=lambda e, f=worst: f * e)
