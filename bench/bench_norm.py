import pytest
import torch.nn.functional as F

import mpskernels

SHAPES = [(64, 256), (256, 4096), (1, 4096), pytest.param((4096, 4096), marks=pytest.mark.slow)]
IMPLEMENTATIONS = {
    "mpskernels": lambda x, weight: mpskernels.rms_norm(x, weight, 1e-6),
    "torch": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def bench_rms_norm(compare, tensor, dtype, shape, implementation):
    inputs = [tensor(dtype, *shape), tensor(dtype, shape[-1])]
    compare("rms_norm", dtype, "x".join(map(str, shape)), implementation, IMPLEMENTATIONS, inputs)
