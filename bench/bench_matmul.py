import pytest
import torch

import mpskernels

# m, n, k. Layout nt is how a linear layer reads its weight: through a transposed view.
SHAPES = [(128, 128, 128), (512, 512, 512), (1, 512, 512), pytest.param((1024, 1024, 1024), marks=pytest.mark.slow)]
IMPLEMENTATIONS = {"mpskernels": mpskernels.matmul, "torch": torch.matmul}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["nn", "nt"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def bench_matmul(compare, tensor, dtype, shape, layout, implementation):
    m, n, k = shape
    b = tensor(dtype, k, n) if layout == "nn" else tensor(dtype, n, k).t()
    name = f"{m}x{n}x{k}-{layout}"
    compare("matmul", dtype, name, implementation, IMPLEMENTATIONS, [tensor(dtype, m, k), b])
