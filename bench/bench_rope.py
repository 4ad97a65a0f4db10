import pytest
import torch
import torch.nn.functional as F

import mpskernels


def stock(q, k, cos, sin):
    """As transformers does it."""

    def turn(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return torch.cat([turn(q), turn(k)], 1)


def ours(q, k, cos, sin):
    return torch.cat(mpskernels.rope(q, k, cos, sin), 1)


def stock_normed(q, k, q_weight, k_weight, cos, sin):
    """As transformers' Qwen3."""
    return stock(F.rms_norm(q, q.shape[-1:], q_weight, 1e-6), F.rms_norm(k, k.shape[-1:], k_weight, 1e-6), cos, sin)


def ours_normed(q, k, q_weight, k_weight, cos, sin):
    return torch.cat(mpskernels.qk_norm_rope(q, k, q_weight, k_weight, 1e-6, cos, sin), 1)


def gradient(function):
    def run(*tensors):
        leaves = [t.detach().requires_grad_() for t in tensors[:4]]
        function(*leaves, *tensors[4:]).sum().backward()
        return leaves[0].grad

    return run


IMPLEMENTATIONS = {"mpskernels": ours, "torch": stock}
NORMED = {
    "qk_norm_rope": {"mpskernels": ours_normed, "torch": stock_normed},
    "qk_norm_rope_gradient": {"mpskernels": gradient(ours_normed), "torch": gradient(stock_normed)},
}
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("op", NORMED)
def bench_qk_norm_rope(compare, tensor, op, dtype, shape, implementation):
    batch, q_heads, k_heads, length, d = shape
    inputs = [
        tensor(dtype, batch, q_heads, length, d),
        tensor(dtype, batch, k_heads, length, d),
        tensor(dtype, d),
        tensor(dtype, d),
        *(table.repeat(1, 2) for table in (tensor(dtype, length, d // 2), tensor(dtype, length, d // 2))),
    ]
    compare(op, dtype, "x".join(map(str, shape)), implementation, NORMED[op], inputs)
