import itertools
import math

import pytest
import torch
from cases import assert_accurate, assert_rejected, direct, dtypes, in_threads, random, to_mps, worst_error
from torch.testing._internal.common_methods_invocations import op_db

import mpskernels
from mpskernels import _C

OPS = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
either = pytest.mark.parametrize("op", OPS)


def scores(x, mask=None, *, scale=1.0, is_causal=False, soft_cap=None):
    """The scores in float64, and whether each takes part."""
    s = x.double() * scale
    if soft_cap is not None:
        s = soft_cap * torch.tanh(s / soft_cap)
    there = torch.ones(x.shape, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        there = there & mask
    elif mask is not None:
        s = s + mask.double()
    if is_causal:
        there = there & torch.ones(x.shape[-2:], dtype=torch.bool).tril()
    return s, there & ~(s < -3e38)


def reference(op, x, mask=None, **options):
    s, there = scores(x, mask, **options)
    largest = s.masked_fill(~there, -math.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    parts = torch.where(there, (s - largest).exp(), 0.0)
    total = parts.sum(-1, keepdim=True)
    if op == "softmax":
        return torch.where(total == 0, 0.0, parts / total.where(total != 0, 1.0))
    return torch.where(there, s - largest - total.log(), -math.inf)


def check(op, x, mask=None, **options):
    """Forward and backward of tensors on the CPU."""
    grad = random(*x.shape, dtype=x.dtype, seed=5)
    leaf = to_mps(x).requires_grad_()
    y = getattr(mpskernels, op)(leaf, to_mps(mask), **options)
    assert y.is_contiguous()
    assert y.dtype == x.dtype
    # A score's rounding, in proportion to its size, is an error of the same size relative to its exponential.
    s, there = scores(x, mask, **options)
    size = s.where(there, 0.0).abs().amax(-1, keepdim=True) if x.size(-1) else s
    expected = reference(op, x, mask, **options)
    scale = expected if op == "log_softmax" else expected * (1 + size)
    if op == "log_softmax":
        scale = expected.abs() + size
    assert_accurate(y.detach(), expected, scale=scale, allowed=8.0 if x.dtype == torch.float32 else 0.6)
    if x.numel() == 0:
        return
    leaf64 = x.double().requires_grad_()
    wide = reference(op, leaf64, mask, **options)
    finite = wide.isfinite()
    (exact,) = torch.autograd.grad(
        wide[finite].sum() if not finite.any() else (wide * grad.double())[finite].sum(), leaf64
    )
    (ours,) = torch.autograd.grad(y, leaf, to_mps(grad))
    assert ours.is_contiguous()
    # The gradient is computed from the result as rounded, which makes the terms of its sum that uncertain.
    slope = options.get("scale", 1.0)
    wide, g = wide.detach(), grad.double()
    p = (wide if op == "softmax" else wide.exp()).clamp(min=torch.finfo(x.dtype).tiny)
    sums = (p * g).abs().sum(-1, keepdim=True) if op == "softmax" else g.where(finite, 0.0).sum(-1, keepdim=True).abs()
    magnitude = p * (g.abs() + sums) if op == "softmax" else g.abs() + p * sums * (1 + wide.abs().where(finite, 0.0))
    magnitude = magnitude * abs(slope) * (1 + size) + 1e-30
    assert_accurate(ours, exact, scale=magnitude, allowed=16.0 if x.dtype == torch.float32 else 1.5)


@either
@dtypes
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 32, 33, 64, 100, 127, 256, 1000, 1024, 1025, 2048, 4100, 16384])
def test_softmax_matches_reference(op, dtype, columns):
    check(op, 3 * random(3, columns, dtype=dtype))


@either
@dtypes
@pytest.mark.parametrize("columns", [16385, 16392, 20004, 65537])
def test_softmax_walks_over_long_rows(op, dtype, columns):
    check(op, 3 * random(2, columns, dtype=dtype), soft_cap=5.0)
    check(op, 3 * random(2, columns, dtype=dtype))


MASKS = {
    "bool": lambda dtype, *shape: random(*shape, seed=1) > 0,
    "same": lambda dtype, *shape: random(*shape, dtype=dtype, seed=1),
    "f32": lambda dtype, *shape: random(*shape, seed=1),
    "infinite": lambda dtype, *shape: torch.where(random(*shape, seed=1) > 0, 0.0, -math.inf).to(dtype),
}


@either
@dtypes
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 24), (4, 24), (3, 1, 24), (2, 1, 1, 24), (24,), (4, 1), (1,), ()], ids=str)
def test_softmax_broadcasts_its_mask(op, dtype, mask, shape):
    check(op, random(2, 3, 4, 24, dtype=dtype), MASKS[mask](dtype, *shape))


@either
@dtypes
@pytest.mark.parametrize("mask", MASKS)
def test_softmax_of_long_rows_takes_masks(op, dtype, mask):
    x = random(2, 16400, dtype=dtype)
    check(op, x, MASKS[mask](dtype, 2, 16400), is_causal=False, scale=0.3)


@either
@dtypes
@pytest.mark.parametrize("shape", [(5, 5), (2, 3, 7, 24), (3, 24, 7), (40, 33)], ids=str)
def test_softmax_causal(op, dtype, shape):
    check(op, random(*shape, dtype=dtype), is_causal=True)
    check(op, random(*shape, dtype=dtype), random(*shape[-2:], seed=1) > 0, is_causal=True, scale=0.125, soft_cap=3.0)


@either
@dtypes
@pytest.mark.parametrize("soft_cap", [None, 0.5, 30.0])
@pytest.mark.parametrize("scale", [1.0, -2.0, 0.0, 0.125])
def test_softmax_scales_and_caps(op, dtype, scale, soft_cap):
    check(op, 4 * random(3, 40, dtype=dtype), scale=scale, soft_cap=soft_cap)


LAYOUTS = {
    "transposed": lambda t: t(40, 6).T,
    "every_second_column": lambda t: t(6, 80)[:, ::2],
    "every_second_row": lambda t: t(12, 40)[::2],
    "offset_unaligned": lambda t: t(6 * 40 + 1)[1:].view(6, 40),
    "unaligned_rows": lambda t: t(6, 43)[:, :40],
    "heads": lambda t: t(2, 5, 3, 40).transpose(1, 2),
    "expanded": lambda t: t(3, 1, 40).expand(3, 4, 40),
    "columns_expanded": lambda t: t(6, 1).expand(6, 40),
    "scalar_row": lambda t: t(40),
}


@either
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_reads_any_strides(op, dtype, layout):
    check(op, LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype)))
    x = random(3, 4, 40, dtype=dtype)
    check(op, x, random(40, 4, seed=1).T > 0)
    y = torch.softmax(x.float(), -1).to(dtype)
    for t in (lambda t: t, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)[..., :39]):
        ours = direct("softmax_backward")(to_mps(t(x)), to_mps(t(y)), None)
        gy = (t(x).double() * t(y).double()).sum(-1, keepdim=True)
        assert_accurate(
            ours, t(y).double() * (t(x).double() - gy), scale=t(y).double() * (t(x).double().abs() + gy.abs())
        )


@either
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (2, 0, 8)], ids=str)
def test_softmax_of_nothing_launches_nothing(op, shape):
    before = _C.launches()
    assert getattr(mpskernels, op)(torch.empty(shape, device="mps")).shape == shape
    assert _C.launches() == before


@dtypes
def test_rows_without_any_score(dtype):
    mask = torch.tensor([[True] * 8, [False] * 8])
    for x, m in (
        (random(2, 8, dtype=dtype), mask),
        (random(2, 8, dtype=dtype), torch.where(mask, 0.0, -math.inf)),
        (torch.where(mask, random(2, 8), -math.inf).to(dtype), None),
    ):
        leaf = to_mps(x).requires_grad_()
        y = mpskernels.softmax(leaf, to_mps(m))
        assert torch.equal(y[1].cpu(), torch.zeros(8, dtype=dtype))
        torch.testing.assert_close(y[0].sum().item(), 1.0, atol=1e-2, rtol=0)
        (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        assert torch.equal(grad[1].cpu(), torch.zeros(8, dtype=dtype))
        logs = mpskernels.log_softmax(leaf, to_mps(m))
        assert torch.equal(logs[1].cpu(), torch.full((8,), -math.inf, dtype=dtype))
        (grad,) = torch.autograd.grad(logs, leaf, torch.ones_like(y))
        assert torch.equal(grad[1].cpu(), torch.zeros(8, dtype=dtype))


@either
@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("columns", [8, 5000, 16400])
def test_softmax_passes_on_what_is_not_finite(op, dtype, bad, columns):
    x = random(3, columns, dtype=dtype)
    x[1, columns // 2] = bad
    y = getattr(mpskernels, op)(to_mps(x)).cpu()
    assert y[1].isnan().all() if op == "softmax" else y[1].isnan().any()
    assert y[[0, 2]].isfinite().all()


@dtypes
def test_softmax_of_large_scores(dtype):
    big = 60000.0 if dtype == torch.float16 else 1e37
    x = torch.tensor([[big, big, -big], [-big, -big, -big], [big, 0.0, 1.0]], dtype=dtype)
    expected = torch.tensor([[0.5, 0.5, 0], [1 / 3] * 3, [1, 0, 0]]).to(dtype)
    torch.testing.assert_close(mpskernels.softmax(to_mps(x)).cpu(), expected)


def test_softmax_is_one_launch_and_deterministic():
    for columns in (100, 5000, 17000):
        x = to_mps(random(5, columns))
        _C.reset_launches()
        first = mpskernels.softmax(x)
        assert sum(_C.launches()["softmax"].values()) == 1
        assert torch.equal(first.cpu(), mpskernels.softmax(x).cpu())


@pytest.mark.slow
def test_softmax_takes_many_rows():
    x = random(65537 * 8 + 3, 2)
    torch.testing.assert_close(mpskernels.softmax(to_mps(x)).cpu(), torch.softmax(x, -1), atol=1e-6, rtol=1e-6)


@either
def test_softmax_passes_torchs_own_samples(op):
    [info] = [info for info in op_db if info.name == op and info.variant_test_name == ""]
    taken = 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
            dim = sample.args[0] if sample.args else sample.kwargs["dim"]
            x = sample.input
            if x.dim() == 0:
                continue  # ours needs a last dimension
            leaf = to_mps(x.detach()).requires_grad_()
            y = getattr(mpskernels, op)(leaf.movedim(dim, -1)).movedim(-1, dim)
            expected = OPS[op](x.detach().double().requires_grad_(), dim)
            stock = OPS[op](x, dim)
            torch.testing.assert_close(y.cpu(), stock, atol=2e-2 if dtype == torch.bfloat16 else 2e-3, rtol=2e-2)
            size = expected.detach().abs() + (0 if op == "softmax" else 1)
            error, theirs = (worst_error(t, expected.detach(), size) for t in (y, stock.detach()))
            assert error <= max(8.0 if dtype == torch.float32 else 0.6, 2 * theirs)
            grad = torch.ones_like(stock) * torch.linspace(-1, 1, max(stock.numel(), 1))[: stock.numel()].view_as(stock)
            grad = grad.to(dtype)
            (ours,) = torch.autograd.grad(y, leaf, to_mps(grad))
            (want,) = torch.autograd.grad(stock, x, grad)
            torch.testing.assert_close(ours.cpu(), want, atol=2e-2 if dtype == torch.bfloat16 else 2e-3, rtol=2e-2)
            taken += 1
    assert taken >= 9


@either
def test_softmax_definition_passes_gradcheck(op):
    leaf = random(3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference(op, x, scale=0.7, soft_cap=1.5), leaf)


def test_softmax_from_several_threads():
    def work(seed):
        for columns in (40, 300, 4100, 16400):
            check("softmax", random(3, columns, seed=seed))

    in_threads(work)


def test_softmax_reaches_every_kernel():
    _C.reset_launches()
    for dtype, columns in itertools.product((torch.float32, torch.float16, torch.bfloat16), (1024, 16384, 16385)):
        x = to_mps(random(1, columns, dtype=dtype)).requires_grad_()
        mpskernels.softmax(x).sum().backward()
    ran = {label.split("?")[0] for op in ("softmax", "softmax_backward") for label in _C.launches()[op]}
    assert ran == {name for name in _C.function_names() if name.startswith("softmax")}


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


REJECTED = {
    "x_none": (lambda: ((None,), {}), TypeError, "expected x to be a tensor, got None"),
    "x_on_cpu": (
        lambda: ((empty(4, device="cpu"),), {}),
        ValueError,
        'expected x on device mps, got cpu; move it with x.to("mps")',
    ),
    "x_dtype": (
        lambda: ((empty(4, dtype=torch.int64),), {}),
        TypeError,
        "expected x of dtype float32, float16 or bfloat16, got int64",
    ),
    "x_scalar": (lambda: ((empty(),), {}), ValueError, "expected x.dim() >= 1, got 0"),
    "mask_on_meta": (
        lambda: ((empty(4), empty(4, device="meta")), {}),
        ValueError,
        "expected mask on device mps to match x, got meta",
    ),
    "mask_dtype": (
        lambda: ((empty(4, dtype=torch.float16), empty(4, dtype=torch.bfloat16)), {}),
        TypeError,
        "expected mask of dtype bool, float32 or that of x, float16, got bfloat16",
    ),
    "mask_integers": (
        lambda: ((empty(4), empty(4, dtype=torch.int64)), {}),
        TypeError,
        "expected mask of dtype bool, float32 or that of x, float32, got int64",
    ),
    "mask_size": (
        lambda: ((empty(3, 4), empty(2, 4)), {}),
        ValueError,
        "expected mask.size(-2) == 3 or 1 to match x.size(-2), got 2",
    ),
    "mask_dimensions": (lambda: ((empty(4), empty(1, 4)), {}), ValueError, "expected mask.dim() <= 1, got 2"),
    "causal_row": (
        lambda: ((empty(4),), {"is_causal": True}),
        ValueError,
        "expected x.dim() >= 2 where is_causal, got 1",
    ),
    **{
        f"scale_{scale}": (
            lambda scale=scale: ((empty(4),), {"scale": scale}),
            ValueError,
            f"expected a scale that is finite in float32, got {scale:g}",
        )
        for scale in (math.nan, math.inf, 1e39)
    },
    **{
        f"soft_cap_{cap}": (
            lambda cap=cap: ((empty(4),), {"soft_cap": cap}),
            ValueError,
            f"expected a soft_cap > 0 that is finite in float32, got {cap:g}",
        )
        for cap in (math.nan, math.inf, 0.0, -1.0, 1e-60)
    },
}


@either
@pytest.mark.parametrize("case", REJECTED)
def test_softmax_rejects(op, case):
    make, error, text = REJECTED[case]
    args, kwargs = make()
    assert_rejected(op, args, kwargs, error, f"mpsk::{op}: {text}")


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (lambda: (empty(3), empty(4), None), {}, ValueError, "expected grad.size(0) == 4 to match out, got 3"),
        (lambda: (empty(1, 4), empty(4), None), {}, ValueError, "expected grad.dim() == 1, got 2"),
        (
            lambda: (empty(4, dtype=torch.float16), empty(4), None),
            {},
            TypeError,
            "expected grad of dtype float32 to match out, got float16",
        ),
        (lambda: (empty(4), empty(4), empty(4)), {}, ValueError, "expected both x and soft_cap, or neither"),
        (lambda: (empty(4), empty(4), None), {"soft_cap": 1.0}, ValueError, "expected both x and soft_cap, or neither"),
    ],
)
def test_softmax_backward_rejects(args, kwargs, error, text):
    assert_rejected("softmax_backward", args(), kwargs, error, f"mpsk::softmax_backward: {text}")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2**32, 1), "expected x.numel() / x.size(-1) <= 4294967295, got 4294967296"),
        ((1, 2**31), "expected x.size(-1) <= 2147483647, got 2147483648"),
    ],
)
def test_softmax_rejects_what_its_grid_cannot_hold(shape, text):
    with pytest.raises(ValueError, match="mpsk::softmax: ") as info:
        mpskernels.softmax(torch.empty(1, 1, device="mps").expand(shape))
    assert str(info.value) == f"mpsk::softmax: {text}"


def test_gradients_that_are_refused():
    x, mask = (torch.ones(4, device="mps", requires_grad=True) for _ in range(2))
    with pytest.raises(NotImplementedError, match="mpsk::softmax: no gradient for mask, which requires grad"):
        mpskernels.softmax(x, mask)
    with pytest.raises(NotImplementedError, match="mpsk::softmax_backward: no gradient for"):
        torch.autograd.grad(mpskernels.softmax(x).sum(), x, create_graph=True)
