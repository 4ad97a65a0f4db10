"""Outputs past 2^31 elements, of which the last threadgroup alone runs. Up to 5.6 GB of memory are touched."""

import pytest
import torch
import torch.nn.functional as F
from cases import direct, random, to_mps

import mpskernels
from bench.light import NO_THREADGROUP
from mpskernels import _C, simulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _C.tensor_units_problem(), reason="M5 chooses other kernels"),
]

ROWS, COLUMNS = 2**17 + 3, 2**14


def numbers(*shape, seed=0):
    return random(*shape, dtype=torch.float16, seed=seed)


def batched(batch, rows, b):
    """Matrices that begin 8 elements apart, in memory of little more than one."""
    a, b = (numbers(batch * 8 + t.numel()).as_strided((batch, *t.shape), (8, *t.stride())) for t in (rows, b))
    return mpskernels.matmul, (a, b), [a[-1, -1].double() @ b[-1].double()]


def linear():
    x, weight, bias = numbers(ROWS, 8), numbers(COLUMNS, 8, seed=1), numbers(COLUMNS, seed=2)
    z = F.linear(x[-1].double(), weight.double(), bias.double())
    return (lambda *t: direct("linear_saving")(*t, "silu", None)), (x, weight, bias), [F.silu(z), z]


def gated_linear():
    x, gate, up = numbers(ROWS, 8), numbers(COLUMNS, 8, seed=1), numbers(COLUMNS, 8, seed=2)
    g, u = (F.linear(x[-1].double(), w.double()) for w in (gate, up))
    return mpskernels.gated_linear, (x, gate, up), [F.silu(g) * u]


def linear_backward():
    grad, z = (numbers(COLUMNS, seed=seed).expand(ROWS, COLUMNS) for seed in (0, 1))
    call = lambda *t: direct("linear_backward")(*t, activation="relu", bias=False)[:1]  # noqa: E731
    return call, (grad, z), [(grad[-1] * (z[-1] > 0)).double()]


def gated_linear_backward():
    rows = 17 * 2**13  # so that threadgroups, 2^16 in a row of the grid, fill it
    grad, gate, up = (numbers(COLUMNS, seed=seed).expand(rows, COLUMNS) for seed in range(3))
    call = lambda *t: direct("gated_linear_backward")(*t, activation="none")  # noqa: E731
    return call, (grad, gate, up), [(grad[-1].double() * t[-1].double()) for t in (up, gate)]


def grouped_matmul_backward():
    groups, size = 513, 2**11
    grad, x = numbers(groups, size), numbers(groups, size, seed=1)
    offsets = torch.arange(1, groups + 1, dtype=torch.int32)
    call = lambda *t: direct("grouped_matmul_backward")(*t, None)  # noqa: E731
    return call, (grad, x, offsets), [x[-1, -1].double() * grad[-1].double()]


def grouped_matmul_scatter():
    rows, indices = numbers(3, COLUMNS), torch.tensor([ROWS - 1, 5, ROWS - 1], dtype=torch.int32)
    call = lambda *t: direct("grouped_matmul_scatter")(*t, ROWS)  # noqa: E731
    return call, (rows, indices), [rows[::2].double().sum(0)]


CASES = {
    "matmul_packed": lambda: batched(2**23 + 3, numbers(16, 8), numbers(8, 16)),
    "matmul_skinny_k": lambda: batched(ROWS, numbers(1, 8), numbers(COLUMNS, 8).T),
    "matmul_skinny_n": lambda: batched(ROWS, numbers(1, 8), numbers(8, COLUMNS)),
    "matmul_tile, saving": linear,
    "matmul_gated": gated_linear,
    "matmul_tile, grouped": grouped_matmul_backward,
    "linear_backward": linear_backward,
    "gated_backward": gated_linear_backward,
    "grouped_matmul_scatter": grouped_matmul_scatter,
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_of_more_than_2_to_the_31_elements(case):
    call, tensors, expected = CASES[case]()
    tensors = to_mps(tensors)

    def run(only):
        with simulator.profile(only=only) as profile:
            outs = call(*tensors)
            torch.mps.synchronize()
        return profile.dispatches, [outs] if isinstance(outs, torch.Tensor) else outs

    [dispatch] = run(NO_THREADGROUP)[0]
    assert dispatch.kernel.startswith(case.split(",")[0])
    outs = run(dispatch.groups - 1)[1]
    for out, want in zip(outs, expected, strict=True):
        assert out.numel() > 2**31
        torch.testing.assert_close(out.view(-1)[-4:].cpu().double(), want[-4:], rtol=2e-3, atol=2e-3)
