import pytest
import torch

import mpskernels

SHAPES = [(64, 512), (8, 4096), (2, 32768), pytest.param((4096, 4096), marks=pytest.mark.slow)]
IMPLEMENTATIONS = {
    "softmax": {"mpskernels": mpskernels.softmax, "torch": lambda x: torch.softmax(x, -1)},
    "log_softmax": {"mpskernels": mpskernels.log_softmax, "torch": lambda x: torch.log_softmax(x, -1)},
}


@pytest.mark.parametrize("implementation", ["mpskernels", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def bench_softmax(compare, tensor, op, dtype, shape, implementation):
    shape_name = "x".join(map(str, shape))
    compare(op, dtype, shape_name, implementation, IMPLEMENTATIONS[op], [tensor(dtype, *shape)])
