import pytest
import torch
import torch.nn.functional as F

import mpskernels

# m, n, k, as models have them: a decoding step of one and of four rows, a prompt, odd sizes. Layout nt is how a linear
# layer reads its weight: through a transposed view.
SHAPES = [
    (128, 128, 128),
    (512, 512, 512),
    (1, 512, 512),
    (4, 512, 512),
    (16, 512, 512),
    (77, 131, 259),
    (64, 64, 4096),
    pytest.param((1024, 1024, 1024), marks=pytest.mark.slow),
    pytest.param((1, 4096, 4096), marks=pytest.mark.slow),
    pytest.param((512, 4096, 4096), marks=pytest.mark.slow),
]
BATCHES = [(512, 16, 16, 16), pytest.param((4096, 16, 16, 16), marks=pytest.mark.slow)]
GROUPS = [(8, 256, 128, 128), pytest.param((64, 2048, 512, 512), marks=pytest.mark.slow)]  # groups, rows, n, k
dtypes = pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])


def name_of(*sizes, suffix=""):
    return "x".join(map(str, sizes)) + suffix


def each(implementations):
    return pytest.mark.parametrize("implementation", implementations)


MATMUL = {"mpskernels": mpskernels.matmul, "torch": torch.matmul}


@each(MATMUL)
@pytest.mark.parametrize("layout", ["nn", "nt"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: name_of(*shape))
@dtypes
def bench_matmul(compare, tensor, dtype, shape, layout, implementation):
    m, n, k = shape
    b = tensor(dtype, k, n) if layout == "nn" else tensor(dtype, n, k).t()
    compare("matmul", dtype, name_of(*shape, suffix=f"-{layout}"), implementation, MATMUL, [tensor(dtype, m, k), b])


@each(MATMUL)
@pytest.mark.parametrize("shape", BATCHES, ids=lambda shape: name_of(*shape))
@dtypes
def bench_batched_matmul(compare, tensor, dtype, shape, implementation):
    batch, m, n, k = shape
    inputs = [tensor(dtype, batch, m, k), tensor(dtype, batch, k, n)]
    compare("batched_matmul", dtype, name_of(*shape), implementation, MATMUL, inputs)


LINEAR = {
    "mpskernels": lambda x, w, b, r: mpskernels.linear(x, w, b, activation="gelu", residual=r),
    "torch": lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r,
}


@each(LINEAR)
@pytest.mark.parametrize("shape", [(1, 512, 512), (128, 512, 512)], ids=lambda shape: name_of(*shape))
@dtypes
def bench_linear(compare, tensor, dtype, shape, implementation):
    m, n, k = shape
    inputs = [tensor(dtype, m, k), tensor(dtype, n, k), tensor(dtype, n), tensor(dtype, m, n)]
    compare("linear", dtype, name_of(*shape, suffix="-gelu-residual"), implementation, LINEAR, inputs)


GATED = {
    "mpskernels": mpskernels.gated_linear,
    "torch": lambda x, gate, up: F.silu(F.linear(x, gate)) * F.linear(x, up),
}


@each(GATED)
@pytest.mark.parametrize("shape", [(1, 512, 512), (128, 512, 512)], ids=lambda shape: name_of(*shape))
@dtypes
def bench_gated_linear(compare, tensor, dtype, shape, implementation):
    m, n, k = shape
    inputs = [tensor(dtype, m, k), tensor(dtype, n, k), tensor(dtype, n, k)]
    compare("gated_linear", dtype, name_of(*shape), implementation, GATED, inputs)


def loop_over_groups(x, w):
    """Stock torch has no grouped product on mps."""
    rows = x.size(0) // w.size(0)
    return torch.cat([x[g * rows : (g + 1) * rows] @ w[g] for g in range(w.size(0))])


def grouped(x, w):
    rows = x.size(0) // w.size(0)
    offsets = torch.arange(rows, x.size(0) + 1, rows, dtype=torch.int32, device=x.device)
    return mpskernels.grouped_matmul(x, w, offsets)


GROUPED = {"mpskernels": grouped, "torch": loop_over_groups}


@each(GROUPED)
@pytest.mark.parametrize("shape", GROUPS, ids=lambda shape: name_of(*shape))
@dtypes
def bench_grouped_matmul(compare, tensor, dtype, shape, implementation):
    groups, rows, n, k = shape
    inputs = [tensor(dtype, rows, k), tensor(dtype, groups, k, n)]
    compare("grouped_matmul", dtype, name_of(*shape), implementation, GROUPED, inputs)


def gradients(linear):
    def run(x, w):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        linear(x, w).backward(torch.ones(x.size(0), w.size(0), dtype=x.dtype, device=x.device))
        return torch.cat([x.grad, w.grad])

    return run


BACKWARD = {"mpskernels": gradients(mpskernels.linear), "torch": gradients(F.linear)}


@each(BACKWARD)
@dtypes
def bench_linear_backward(compare, tensor, dtype, implementation):
    inputs = [tensor(dtype, 128, 512), tensor(dtype, 512, 512)]
    compare("linear_backward", dtype, name_of(128, 512, 512), implementation, BACKWARD, inputs)
