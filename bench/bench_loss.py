import pytest
import torch
import torch.nn.functional as F

import mpskernels

SHAPES = [(16, 4096), (4, 32768), pytest.param((1024, 128256), marks=pytest.mark.slow)]


def targets_of(logits):
    return torch.arange(logits.size(0), device=logits.device) * 7 % logits.size(1)


def gradient(loss):
    def run(logits):
        logits = logits.detach().requires_grad_()
        loss(logits).backward()
        return logits.grad

    return run


def ours(logits):
    return mpskernels.cross_entropy(logits, targets_of(logits))


def stock(logits):
    return F.cross_entropy(logits, targets_of(logits))


def linear(head):
    def run(hidden, weight):
        targets = torch.arange(hidden.size(0), device=hidden.device)
        hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        head(hidden, weight, targets).backward()
        return weight.grad

    return run


IMPLEMENTATIONS = {
    "cross_entropy": {"mpskernels": ours, "torch": stock},
    "cross_entropy_gradient": {"mpskernels": gradient(ours), "torch": gradient(stock)},
}
LINEAR = {
    "mpskernels": linear(mpskernels.linear_cross_entropy),
    "torch": linear(lambda hidden, weight, targets: F.cross_entropy(hidden @ weight.T, targets)),
}
implementations = pytest.mark.parametrize("implementation", ["mpskernels", "torch"])


@implementations
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def bench_cross_entropy(compare, tensor, op, dtype, shape, implementation):
    shape_name = "x".join(map(str, shape))
    compare(op, dtype, shape_name, implementation, IMPLEMENTATIONS[op], [tensor(dtype, *shape)])


@implementations
@pytest.mark.parametrize("shape", [(32, 64, 512)], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["f32"])  # stock logits in half round the loss itself
def bench_linear_cross_entropy(compare, tensor, dtype, shape, implementation):
    rows, columns, classes = shape
    inputs = [tensor(dtype, rows, columns), tensor(dtype, classes, columns)]
    compare("linear_cross_entropy_gradient", dtype, "x".join(map(str, shape)), implementation, LINEAR, inputs)
