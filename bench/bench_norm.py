"""The norms against stock torch: as one op where it has one, else as a user composes it."""

import pytest
import torch
import torch.nn.functional as F

import mpskernels

SHAPES = [(64, 256), (256, 4096), (1, 4096), pytest.param((4096, 4096), marks=pytest.mark.slow)]
IMAGES = [(1, 32, 16, 16), pytest.param((2, 320, 64, 64), marks=pytest.mark.slow)]
EPS = 1e-6


def gradients(function):
    """The gradients of all inputs but the last, which is the gradient of the output."""

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        *inputs, grad = inputs
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = torch.autograd.grad(function(*leaves), leaves, grad)
        return torch.cat([g.flatten() for g in found])

    return run


def stock_modulated(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


# op -> its inputs for rows of x and of shape (columns,), ours, stock torch
NORMS = {
    "rms_norm": (
        "x weight",
        lambda x, weight: mpskernels.rms_norm(x, weight, EPS),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
    ),
    "layer_norm": (
        "x weight weight",
        lambda x, weight, bias: mpskernels.layer_norm(x, weight, bias, EPS),
        lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, EPS),
    ),
    "add_rms_norm": (
        "x x weight",
        lambda x, residual, weight: mpskernels.add_rms_norm(x, residual, weight, EPS)[0],
        lambda x, residual, weight: F.rms_norm(x + residual, weight.shape, weight, EPS),
    ),
    "gated_rms_norm": (
        "x x weight",
        lambda x, gate, weight: mpskernels.gated_rms_norm(x, gate, weight, EPS),
        lambda x, gate, weight: F.rms_norm(x, weight.shape, weight, EPS) * F.silu(gate),
    ),
}
each_implementation = pytest.mark.parametrize("implementation", ["mpskernels", "torch"])
each_dtype = pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
each_direction = pytest.mark.parametrize("direction", ["forward", "backward"])


def run(compare, op, dtype, shape, which, direction, ours, stock, inputs):
    if direction == "backward":
        op, ours, stock = f"{op}_gradients", gradients(ours), gradients(stock)
    compare(op, dtype, "x".join(map(str, shape)), which, {"mpskernels": ours, "torch": stock}, inputs)


@each_implementation
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@each_dtype
@each_direction
@pytest.mark.parametrize("op", NORMS)
def bench_norm(compare, tensor, op, direction, dtype, shape, implementation):
    names, ours, stock = NORMS[op]
    inputs = [tensor(dtype, *(shape if name == "x" else shape[-1:])) for name in names.split()]
    inputs += [tensor(dtype, *shape)] if direction == "backward" else []
    run(compare, op, dtype, shape, implementation, direction, ours, stock, inputs)


@each_implementation
@each_dtype
@each_direction
def bench_modulated_norm(compare, tensor, direction, dtype, implementation):
    shape = (2, 64, 1152)
    inputs = [tensor(dtype, *shape), tensor(dtype, 2, 1152), tensor(dtype, 2, 1152)]
    inputs += [tensor(dtype, *shape)] if direction == "backward" else []
    run(
        compare,
        "modulated_norm",
        dtype,
        shape,
        implementation,
        direction,
        mpskernels.modulated_norm,
        stock_modulated,
        inputs,
    )


@each_implementation
@pytest.mark.parametrize("shape", IMAGES, ids=lambda shape: "x".join(map(str, shape)))
@each_dtype
@each_direction
def bench_group_norm_silu(compare, tensor, direction, dtype, shape, implementation):
    inputs = [tensor(dtype, *shape), tensor(dtype, shape[1]), tensor(dtype, shape[1])]
    inputs += [tensor(dtype, *shape)] if direction == "backward" else []

    def ours(x, weight, bias):
        return mpskernels.group_norm(x, 32, weight, bias, EPS, silu=True)

    def stock(x, weight, bias):
        return F.silu(F.group_norm(x, 32, weight, bias, EPS))

    run(compare, "group_norm_silu", dtype, shape, implementation, direction, ours, stock, inputs)
