import pytest
import torch.nn.functional as F

import mpskernels

SHAPES = [(64, 1024), pytest.param((4096, 14336), marks=pytest.mark.slow)]
OPS = {
    "swiglu": {"mpskernels": mpskernels.swiglu, "torch": lambda gate, up: F.silu(gate) * up},
    "geglu": {"mpskernels": mpskernels.geglu, "torch": lambda gate, up: F.gelu(gate) * up},
}
GRADIENTS = {
    "mpskernels": lambda gate, up: gradient(mpskernels.swiglu, gate, up),
    "torch": lambda gate, up: gradient(OPS["swiglu"]["torch"], gate, up),
}


def gradient(function, gate, up):
    gate = gate.detach().requires_grad_()
    function(gate, up).backward(up)
    return gate.grad


@pytest.mark.parametrize("implementation", ["mpskernels", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("op", [*OPS, "swiglu_gradient"])
def bench_gated(compare, tensor, op, dtype, shape, implementation):
    inputs = [tensor(dtype, *shape), tensor(dtype, *shape)]
    compare(op, dtype, "x".join(map(str, shape)), implementation, OPS.get(op, GRADIENTS), inputs)
