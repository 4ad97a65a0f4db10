"""mpsk::grouped_matmul, its gather form and its gradients."""

import itertools
import math

import pytest
import torch
from cases import assert_accurate, assert_rejected, dtypes, random, to_mps

import mpskernels
from mpskernels import _C


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def reference(x, w, offsets, indices=None, product=torch.matmul):
    """By a loop over groups, in the dtype of x; differentiable."""
    rows = x if indices is None else x[indices.long()]
    ends = [0, *offsets.tolist()]
    parts = [product(rows[begin:end], w[g]) for g, (begin, end) in enumerate(itertools.pairwise(ends))]
    return torch.cat([*parts, rows.new_zeros(rows.size(0) - ends[-1], w.size(2))])


def check(x, w, offsets, indices=None):
    out = mpskernels.grouped_matmul(*to_mps((x, w, offsets, indices)))
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    expected = reference(x.double(), w.double(), offsets, indices)
    terms = reference(x.double().abs(), w.double().abs(), offsets, indices)
    info = torch.finfo(x.dtype)
    sums = terms * 4 * math.sqrt(max(1, x.size(1))) * 2**-24
    scale = 0.51 * info.eps * (expected.abs() if x.dtype != torch.float32 else terms) + sums + info.smallest_normal
    assert_accurate(out, expected, scale=scale / info.eps, allowed=1.0)
    return out


GROUPS = {
    "one": (12, [12]),
    "even": (24, [8, 16, 24]),
    "ragged": (100, [1, 34, 35, 100]),
    "empty_first": (20, [0, 0, 20]),
    "empty_last": (20, [20, 20, 20]),
    "empty_between": (40, [7, 7, 7, 40]),
    "rest": (50, [10, 33]),  # rows after the last group
    "nothing": (30, [0, 0]),
    "many": (200, [5 * i for i in range(1, 41)]),  # more than the lanes of a simdgroup
    "many_empty": (10, [0] * 70 + [3] + [3] * 20 + [10] + [10] * 8),
    "large": (300, [150, 290, 300]),
}


@dtypes
@pytest.mark.parametrize("groups", GROUPS)
def test_grouped_matmul_matches_reference(dtype, groups):
    rows, ends = GROUPS[groups]
    for k, n in [(24, 40), (33, 7)]:
        check(random(rows, k, dtype=dtype), random(len(ends), k, n, dtype=dtype, seed=1), int32(*ends))


@dtypes
@pytest.mark.parametrize("groups", GROUPS)
def test_grouped_matmul_gathers(dtype, groups):
    rows, ends = GROUPS[groups]
    indices = torch.randint(0, 17, (rows,), generator=torch.Generator().manual_seed(0)).int()
    for k, n in [(24, 40), (33, 7)]:
        check(random(17, k, dtype=dtype), random(len(ends), k, n, dtype=dtype, seed=1), int32(*ends), indices)


def test_grouped_matmul_reads_any_strides():
    offsets, indices = int32(3, 20, 40), torch.arange(40).flip(0).int()
    for x in (random(40, 24), random(24, 40).T, random(80, 48)[::2, ::2], random(1, 24).expand(40, 24)):
        for w in (
            random(3, 24, 32, seed=1),
            random(3, 32, 24, seed=1).mT,
            random(24, 3, 32, seed=1).transpose(0, 1),
            random(1, 24, 32, seed=1).expand(3, 24, 32),
        ):
            check(x, w, offsets)
            check(x, w, offsets, indices)
    check(random(40, 24), random(3, 24, 32), int32(3, 0, 20, 0, 40, 0)[::2], torch.arange(80).int()[::2] % 40)


@pytest.mark.parametrize(
    ("rows", "k", "n", "groups"), [(0, 4, 5, 2), (6, 0, 5, 2), (6, 4, 0, 2), (6, 4, 5, 0), (0, 4, 5, 0)]
)
def test_grouped_matmul_handles_edges(rows, k, n, groups):
    check(random(rows, k), random(groups, k, n), int32(*[rows] * groups))


def test_grouped_matmul_keeps_to_its_memory():
    """Offsets and indices out of range are clamped, or rows of zeros."""
    x, w = random(20, 8), random(2, 8, 16, seed=1)
    out = mpskernels.grouped_matmul(*to_mps((x, w, int32(-5, 1000)))).cpu()
    torch.testing.assert_close(out, x @ w[1], rtol=1e-5, atol=1e-5)
    indices = torch.arange(20).int()
    indices[3], indices[4], indices[5] = -1, 20, 2**31 - 1
    out = mpskernels.grouped_matmul(*to_mps((x, w, int32(10, 20), indices))).cpu()
    assert not out[3:6].any()
    torch.testing.assert_close(out[6:10], x[6:10] @ w[0], rtol=1e-5, atol=1e-5)


def test_grouped_matmul_is_one_launch():
    arguments = to_mps((random(40, 8), random(3, 8, 16), int32(3, 20, 40)))
    _C.reset_launches()
    mpskernels.grouped_matmul(*arguments)
    assert sum(_C.launches()["grouped_matmul"].values()) == 1


@dtypes
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("groups", ["one", "ragged", "empty_first", "rest", "many_empty", "large"])
def test_grouped_matmul_gradient_matches_reference(dtype, gathered, groups):
    rows, ends = GROUPS[groups]
    x, w = random(17 if gathered else rows, 24, dtype=dtype), random(len(ends), 24, 40, dtype=dtype, seed=1)
    indices = torch.randint(0, 16, (rows,), generator=torch.Generator().manual_seed(0)).int() if gathered else None
    grad = random(rows, 40, dtype=dtype, seed=2)

    def gradients(function, tensors, offsets, indices, grad):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        function(*leaves, offsets, indices).backward(grad)
        return [leaf.grad for leaf in leaves]

    expected = gradients(reference, (x.double(), w.double()), int32(*ends), indices, grad.double())
    offsets, indices, grad = to_mps((int32(*ends), indices, grad))
    actual = gradients(mpskernels.grouped_matmul, to_mps((x, w)), offsets, indices, grad)
    again = gradients(mpskernels.grouped_matmul, to_mps((x, w)), offsets, indices, grad)
    # Measured, in eps of the largest value: 1.5, and 0.57 of what is rounded once or, of gathered rows, two times.
    tolerance = (4 if dtype == torch.float32 else 1.5) * torch.finfo(dtype).eps
    for got, same, want in zip(actual, again, expected, strict=True):
        assert torch.equal(got.cpu(), same.cpu())
        assert (got.shape, got.dtype) == (want.shape, dtype)
        error = (got.cpu().double() - want).abs().max() / want.abs().max()
        assert error <= tolerance


@dtypes
@pytest.mark.parametrize("k", [98, 100, 104])
def test_one_row_is_gathered_by_itself(k, dtype):
    """However many rows are named, any of them is read, and aligned as those of x are."""
    x, w = random(5, k, dtype=dtype), random(2, k, 24, dtype=dtype, seed=1)
    for row in (1, 4):
        check(x, w, int32(0, 1), int32(row))
        grad = random(1, 24, dtype=dtype, seed=2)
        of_w = torch.ops.mpsk.grouped_matmul_backward(*to_mps((grad, x, int32(0, 1), int32(row))))
        expected = x[row].double()[:, None] * grad.double()
        torch.testing.assert_close(of_w[1].cpu().double(), expected, rtol=torch.finfo(dtype).eps, atol=0)
        assert not of_w[0].any()


@pytest.mark.parametrize("count", [1, 8, 16, 17, 40])
def test_scatter_sums_rows_in_any_number(count):
    generator = torch.Generator().manual_seed(0)
    rows, indices = random(600, 300), torch.randint(-1, count + 5, (600,), generator=generator).int()
    out = torch.ops.mpsk.grouped_matmul_scatter(*to_mps((rows, indices)), count)
    expected = torch.stack([rows[indices == t].double().sum(0) for t in range(count)])
    assert_accurate(out, expected, scale=torch.full_like(expected, 30.0), allowed=4.0)


def test_scatter_reads_strided_rows_and_indices():
    rows, indices = random(70, 2 * 60), torch.randint(-1, 5, (120,), generator=torch.Generator().manual_seed(0)).int()
    on_mps = to_mps((rows, indices))
    out = torch.ops.mpsk.grouped_matmul_scatter(on_mps[0].t()[::2], on_mps[1][::2], 5)
    expected = torch.stack([rows.t()[::2][indices[::2] == t].double().sum(0) for t in range(5)])
    assert_accurate(out, expected, scale=torch.full_like(expected, 30.0), allowed=4.0)


def test_grouped_matmul_compiles_with_its_gradient():
    torch._dynamo.reset()
    compiled = torch.compile(mpskernels.grouped_matmul, fullgraph=True, backend="aot_eager")
    offsets, indices = to_mps((int32(3, 20, 40), torch.randint(0, 17, (40,)).int()))
    leaves = [[t.requires_grad_() for t in to_mps((random(17, 8), random(3, 8, 16)))] for _ in range(2)]
    mpskernels.grouped_matmul(*leaves[0], offsets, indices).square().sum().backward()
    compiled(*leaves[1], offsets, indices).square().sum().backward()
    for eager, traced in zip(*leaves, strict=True):
        assert torch.equal(eager.grad.cpu(), traced.grad.cpu())


def empty(*shape, dtype=torch.float32, device="mps"):
    return torch.zeros(shape, dtype=dtype, device=device)


I32 = torch.int32
REJECTED = {
    "k": (
        lambda: (empty(5, 8), empty(2, 7, 4), empty(2, dtype=I32)),
        ValueError,
        "expected w.size(1) == 8 to match x.size(1), got 7",
    ),
    "groups": (
        lambda: (empty(5, 8), empty(2, 8, 4), empty(3, dtype=I32)),
        ValueError,
        "expected w.size(0) == 3 to match offsets.size(0), got 2",
    ),
    "x_dim": (
        lambda: (empty(8), empty(2, 8, 4), empty(2, dtype=I32)),
        ValueError,
        "expected x.dim() == 2, got 1",
    ),
    "w_dim": (
        lambda: (empty(5, 8), empty(8, 4), empty(2, dtype=I32)),
        ValueError,
        "expected w.dim() == 3, got 2",
    ),
    "offsets_dtype": (
        lambda: (empty(5, 8), empty(2, 8, 4), empty(2, dtype=torch.int64)),
        TypeError,
        "expected offsets of dtype int32, got int64; pass offsets.to(torch.int32)",
    ),
    "indices_dtype": (
        lambda: (empty(5, 8), empty(2, 8, 4), empty(2, dtype=I32), empty(2, dtype=torch.int64)),
        TypeError,
        "expected indices of dtype int32, got int64; pass indices.to(torch.int32)",
    ),
    "indices_dim": (
        lambda: (empty(5, 8), empty(2, 8, 4), empty(2, dtype=I32), empty(2, 2, dtype=I32)),
        ValueError,
        "expected indices.dim() == 1, got 2",
    ),
    "w_dtype": (
        lambda: (empty(5, 8), empty(2, 8, 4, dtype=torch.float16), empty(2, dtype=I32)),
        TypeError,
        "expected w of dtype float32 to match x, got float16",
    ),
    "offsets_on_cpu": (
        lambda: (empty(5, 8), empty(2, 8, 4), empty(2, dtype=I32, device="cpu")),
        ValueError,
        'expected offsets on device mps, got cpu; move it with offsets.to("mps")',
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_grouped_matmul_rejects(case):
    args, error, text = REJECTED[case]
    assert_rejected("grouped_matmul", args(), {}, error, f"mpsk::grouped_matmul: {text}")
