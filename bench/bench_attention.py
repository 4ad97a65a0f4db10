import pytest
import torch.nn.functional as F

import mpskernels

# heads of q, heads of k and v, queries, keys, head dim
SHAPES = [
    (4, 4, 128, 128, 64),
    (8, 2, 256, 256, 64),
    (8, 2, 1, 512, 128),
    pytest.param((8, 2, 1024, 1024, 128), marks=pytest.mark.slow),
]


def implementations(causal: bool) -> dict:
    return {
        "mpskernels": lambda q, k, v: mpskernels.attention(q, k, v, is_causal=causal),
        "torch": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
    }


@pytest.mark.parametrize("implementation", implementations(False))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def bench_attention(compare, tensor, dtype, shape, implementation):
    heads, kv_heads, queries, keys, dim = shape
    causal = queries > 1
    inputs = [tensor(dtype, 1, heads, queries, dim), *(tensor(dtype, 1, kv_heads, keys, dim) for _ in range(2))]
    name = f"h{heads}kv{kv_heads}q{queries}k{keys}d{dim}{'-causal' if causal else ''}"
    compare("attention", dtype, name, implementation, implementations(causal), inputs)
