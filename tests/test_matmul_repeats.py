"""The same call gives the same bits every time. tests/simulator/test_schedules_matmul.py runs these calls with their
threads in other orders."""

from functools import partial

import pytest
import torch
from cases import all_equal, direct, dtypes, random, to_mps
from test_matmul import CHOICES, operands
from test_matmul_grouped import int32

import mpskernels

OFFSETS = int32(1, 30, 30, 90)  # of rows: a group has one of them, another none, and ten have no group


def numbered(rows, count):
    """Which of `count` rows each is: all in any order, most of them several times, and for some none."""
    return torch.randint(-1, count + 2, (rows,), generator=torch.Generator().manual_seed(0)).int()


def call(function, *shapes, rest=(), **options):
    """Of a dtype: the function of tensors of the shapes, and of the rest as it is."""

    def of(dtype):
        tensors = [random(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]
        return partial(function, *to_mps((*tensors, *rest)), **options)

    return of


def matmul(sizes):
    return lambda dtype: partial(mpskernels.matmul, *to_mps(operands(dtype, *sizes)))


def gradients(x, weight, bias):
    """Of all inputs: linear_backward and both products."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    mpskernels.linear(*leaves, activation="silu").square().sum().backward()
    return [leaf.grad for leaf in leaves]


def of_product(m, n, k):
    return (m, k), (n, k), (n,)


def of_gated(m, n, k):
    return (m, k), (n, k), (n, k)


CALLS = {
    **{str(sizes): matmul(sizes) for sizes, _ in CHOICES},
    "linear": call(mpskernels.linear, *of_product(70, 90, 40), activation="gelu"),
    "linear_split_in_part": call(mpskernels.linear, *of_product(54, 482, 768), activation="gelu"),
    "linear_split": call(mpskernels.linear, *of_product(17, 33, 8192), activation="gelu"),
    "linear_skinny_k_split": call(mpskernels.linear, *of_product(2, 9, 1024), activation="gelu"),
    "matmul_skinny_n_split": call(mpskernels.matmul, (2, 1024), (1024, 40)),
    "gated_linear": call(mpskernels.gated_linear, *of_gated(70, 90, 40)),
    "gated_linear_split_in_part": call(mpskernels.gated_linear, *of_gated(33, 352, 384)),
    "gated_linear_split": call(mpskernels.gated_linear, *of_gated(9, 40, 1024)),
    "gated_linear_skinny_k": call(mpskernels.gated_linear, *of_gated(3, 90, 40)),
    "gated_linear_skinny_k_split": call(mpskernels.gated_linear, *of_gated(1, 9, 1024)),
    "grouped_matmul": call(mpskernels.grouped_matmul, (100, 40), (4, 40, 72), rest=(OFFSETS,)),
    "gathered_matmul": call(mpskernels.grouped_matmul, (30, 40), (4, 40, 72), rest=(OFFSETS, numbered(100, 30))),
    "grouped_matmul_backward": call(direct("grouped_matmul_backward"), (100, 72), (100, 40), rest=(OFFSETS, None)),
    "gathered_matmul_backward": call(
        direct("grouped_matmul_backward"), (100, 72), (30, 40), rest=(OFFSETS, numbered(100, 30))
    ),
    "grouped_matmul_scatter": call(direct("grouped_matmul_scatter"), (300, 70), rest=(numbered(300, 40), 40)),
    "linear_backward": call(direct("linear_backward"), (700, 70), (700, 70), activation="silu", bias=True),
    "linear_backward_of_bias": call(direct("linear_backward"), (700, 70), rest=(None,), activation="none", bias=True),
    "linear_gradients": call(gradients, *of_product(300, 60, 40)),
    "gated_linear_backward": call(direct("gated_linear_backward"), (70, 90), (70, 90), (70, 90), activation="silu"),
    "add_matmuls": call(direct("add_matmuls"), (70, 40), (40, 90), (70, 40), (40, 90)),
}


@dtypes
@pytest.mark.parametrize("name", CALLS)
def test_results_are_the_same_bits_every_time(name, dtype):
    run = CALLS[name](dtype)
    first = run()
    assert all(all_equal(run(), first) for _ in range(3))
