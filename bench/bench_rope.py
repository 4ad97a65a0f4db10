import pytest
import torch

import mpskernels


def stock(q, k, cos, sin):
    """As transformers does it."""

    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return torch.cat([turn(q), turn(k)], 1)


def ours(q, k, cos, sin):
    return torch.cat(mpskernels.rope(q, k, cos, sin), 1)


IMPLEMENTATIONS = {"mpskernels": ours, "torch": stock}
SHAPES = [
    (1, 32, 8, 1, 128),  # batch, heads of q, heads of k, length, d
    (1, 4, 2, 64, 64),
    pytest.param((1, 32, 8, 4096, 128), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def bench_rope(compare, tensor, dtype, shape, implementation):
    batch, q_heads, k_heads, length, d = shape
    inputs = [
        tensor(dtype, batch, q_heads, length, d),
        tensor(dtype, batch, k_heads, length, d),
        *(table.repeat(1, 2) for table in (tensor(dtype, length, d // 2), tensor(dtype, length, d // 2))),
    ]
    compare("rope", dtype, "x".join(map(str, shape)), implementation, IMPLEMENTATIONS, inputs)
