import math
import random as python_random

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPE_IDS, assert_accurate, assert_rejected, dtypes, in_threads, random, to_mps

import mpskernels
from mpskernels import _C

COLUMNS = [
    1,
    2,
    3,
    4,
    31,
    32,
    33,
    64,
    127,
    128,
    129,
    255,
    256,
    511,
    1000,
    1024,
    1025,
    2048,
    4095,
    4096,
    4097,
    4100,
    5120,
    8192,
]
LOOP_COLUMNS = [16384, 16385, 20004]
SMALLEST_NORMAL = torch.finfo(torch.float32).smallest_normal


def reference(x, weight=None, eps=1e-6):
    x = x.double()
    y = x / (x.square().mean(-1, keepdim=True) + max(eps, SMALLEST_NORMAL)).sqrt()
    return y if weight is None else y * weight.double()


def stock(x, weight=None, eps=1e-6):
    if weight is not None and weight.dtype != x.dtype:
        return None
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def check(x, weight=None, eps=1e-6):
    """x and weight on the CPU; returns what the op made."""
    y = mpskernels.rms_norm(to_mps(x), to_mps(weight), eps)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    assert_accurate(y, reference(x, weight, eps), stock=stock(x, weight, eps))
    return y


def weights(columns, dtype):
    return {
        "none": None,
        "same": random(columns, dtype=dtype, seed=1),
        "f32": random(columns, seed=1),
    }


@dtypes
@pytest.mark.parametrize("weight", ["none", "same", "f32"])
@pytest.mark.parametrize("columns", COLUMNS + LOOP_COLUMNS)
def test_rms_norm_matches_reference(dtype, columns, weight):
    check(random(3, columns, dtype=dtype), weights(columns, dtype)[weight])


@dtypes
@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (2, 1, 3, 8), (2, 3, 4, 5), (1,) * 16 + (8,), (37, 132)])
def test_rms_norm_takes_any_leading_shape(dtype, shape):
    check(random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1))


LAYOUTS = {
    "every_second_column": lambda t: t(6, 80)[:, ::2],
    "every_second_row": lambda t: t(12, 40)[::2],
    "first_columns": lambda t: t(6, 44)[:, :40],
    "unaligned_rows": lambda t: t(6, 43)[:, :40],
    "offset_aligned": lambda t: t(6, 80)[:, 40:],
    "offset_unaligned": lambda t: t(6 * 40 + 1)[1:].view(6, 40),
    "transposed": lambda t: t(40, 6).T,
    "heads_before_rows": lambda t: t(2, 5, 3, 40).transpose(1, 2),
    "reversed_dimensions": lambda t: t(40, 4, 3, 2).permute(3, 2, 1, 0),
    "rows_expanded": lambda t: t(1, 40).expand(6, 40),
    "outer_expanded": lambda t: t(3, 1, 40).expand(3, 4, 40),
    "columns_expanded": lambda t: t(6, 1).expand(6, 40),
    "overlapping_windows": lambda t: t(100).unfold(0, 40, 7),
    "long_rows_transposed": lambda t: t(5000, 3).T,
    "loop_rows_transposed": lambda t: t(17000, 2).T,
    "many_dimensions": lambda t: t(3, 2, 3, 2, 3, 2, 3, 40)[::2, :, ::2, :, ::2, :, ::2],
}


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rms_norm_reads_any_strides(dtype, layout):
    x = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
    assert to_mps(x).stride() == x.stride()
    check(x, random(x.size(-1), dtype=dtype, seed=1))


@dtypes
@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_rms_norm_reads_any_weight_strides(dtype, step, offset):
    weight = random(200, dtype=dtype, seed=1).as_strided((40,), (step,), offset)
    check(random(5, 40, dtype=dtype), weight)
    check(random(5, 40, dtype=dtype), weight.float().as_strided((40,), (step,), 0) if step == 1 else weight.float())


def test_rms_norm_strides_and_shapes_at_random():
    dice = python_random.Random(0)
    for trial in range(60):
        dims = dice.randint(1, 4)
        shape = [dice.choice([1, 2, 3, 5]) for _ in range(dims - 1)] + [dice.randint(1, 300)]
        steps = [dice.choice([1, 1, 2, 3]) for _ in shape]
        order = dice.sample(range(dims), dims)
        dtype = dice.choice([torch.float32, torch.float16, torch.bfloat16])
        base = random(*(shape[d] * steps[d] for d in order), dtype=dtype, seed=trial)
        x = base[tuple(slice(None, None, steps[d]) for d in order)].permute([order.index(d) for d in range(dims)])
        assert list(x.shape) == shape
        check(x, dice.choice(list(weights(shape[-1], dtype).values())))


@dtypes
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (0, 0), (2, 0, 8)], ids=str)
def test_rms_norm_of_nothing_launches_nothing(dtype, shape):
    before = _C.launches()
    y = mpskernels.rms_norm(torch.empty(shape, dtype=dtype, device="mps"), torch.empty(shape[-1:], device="mps"))
    assert (y.shape, y.dtype, y.device.type) == (shape, dtype, "mps")
    assert _C.launches() == before


@pytest.mark.parametrize("rows", [65537, 8 * 65536 + 3])
def test_rms_norm_takes_more_rows_than_one_grid_dimension(rows):
    check(random(rows, 2))


@dtypes
@pytest.mark.parametrize("columns", [40, 4096, 5000, 16390])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rms_norm_keeps_bad_rows_to_themselves(dtype, columns, bad):
    x = random(9, columns, dtype=dtype)
    expected = mpskernels.rms_norm(to_mps(x)).cpu()
    x[4, columns // 2] = bad
    y = mpskernels.rms_norm(to_mps(x)).cpu()
    good = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(y[good], expected[good])
    # What the bad row holds besides is fast math's choice: stock torch makes zeros of the numbers beside an infinity.
    assert y[4, columns // 2].isnan()
    assert y[4].isnan().all() or bad == float("inf")


@dtypes
def test_rms_norm_keeps_rows_of_zeros(dtype):
    x = random(4, 100, dtype=dtype)
    x[2] = 0
    for eps in (0.0, 1e-6):
        assert not check(x, eps=eps)[2].any()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e37),
        (torch.float32, 1e18),
        (torch.float32, 1e-15),
        (torch.float32, 1e-19),
        (torch.float32, 1e-30),
        (torch.bfloat16, 1e37),
        (torch.bfloat16, 1e18),
        (torch.bfloat16, 1e-15),
        (torch.bfloat16, 1e-19),
        (torch.float16, 1e4),
        (torch.float16, 1e-4),
    ],
    ids=lambda value: DTYPE_IDS.get(value, value) if isinstance(value, torch.dtype) else f"{value:g}",
)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1.0])
def test_rms_norm_spans_the_range_of_its_dtype(dtype, size, eps):
    x = (random(3, 64) * size).to(dtype)
    for weight in (None, random(64, dtype=dtype, seed=1)):
        y = mpskernels.rms_norm(to_mps(x), to_mps(weight), eps)
        assert_accurate(y, reference(x, weight, eps))  # and not as stock torch, which has none of the largest and least


def test_rms_norm_rounds_once():
    # One and a bit below 1: rounding to half before the multiplication by the weight would give another number.
    x, weight = random(64, 512, dtype=torch.float16), random(512, dtype=torch.float16, seed=1)
    rounded_twice = (reference(x).half().double() * weight.double()).half()
    once = reference(x, weight).half()
    y = mpskernels.rms_norm(to_mps(x), to_mps(weight)).cpu()
    assert (rounded_twice != once).sum() > 1000
    assert (y != once).sum() < 20


@dtypes
def test_rms_norm_is_deterministic(dtype):
    for columns in (100, 4096, 8191, 17000):
        x = to_mps(random(5, columns, dtype=dtype))
        assert torch.equal(mpskernels.rms_norm(x).cpu(), mpskernels.rms_norm(x).cpu())


def test_rms_norm_from_several_threads():
    def work(seed):
        for columns in (40, 300, 4100, 16400):
            x = random(4, columns, seed=seed)
            y = mpskernels.rms_norm(to_mps(x)).cpu()
            torch.testing.assert_close(y, reference(x).float())

    in_threads(work)


def test_rms_norm_chooses_its_kernel_by_columns():
    for columns, kernel in [
        (1024, "row_f32_d1024"),
        (1025, "row_f32_d8192"),
        (16384, "row_f32_d16384"),
        (16388, "loop_f32"),
    ]:
        _C.reset_launches()
        mpskernels.rms_norm(to_mps(random(1, columns)))
        [(label, count)] = _C.launches()["rms_norm"].items()
        assert (label.split("?")[0], count) == (f"norm_{kernel}", 1)


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


REJECTED = {
    "x_on_cpu": (
        lambda: (empty(2, 4, device="cpu"), None, 1e-6),
        ValueError,
        'expected x on device mps, got cpu; move it with x.to("mps")',
    ),
    "weight_on_cpu": (
        lambda: (empty(2, 4), empty(4, device="cpu"), 1e-6),
        ValueError,
        'expected weight on device mps, got cpu; move it with weight.to("mps")',
    ),
    "x_dtype": (
        lambda: (empty(2, 4, dtype=torch.int64), None, 1e-6),
        TypeError,
        "expected x of dtype float32, float16 or bfloat16, got int64",
    ),
    "weight_dtype": (
        lambda: (empty(2, 4, dtype=torch.float16), empty(4, dtype=torch.bfloat16), 1e-6),
        TypeError,
        "expected weight of dtype float16 to match x, or float32, got bfloat16",
    ),
    "x_scalar": (lambda: (empty(), None, 1e-6), ValueError, "expected x.dim() >= 1, got 0"),
    "x_dimensions": (lambda: (empty(*[1] * 18), None, 1e-6), ValueError, "expected x.dim() <= 17, got 18"),
    "weight_dimensions": (
        lambda: (empty(2, 4), empty(1, 4), 1e-6),
        ValueError,
        "expected weight.dim() == 1, got 2",
    ),
    "weight_size": (
        lambda: (empty(2, 64), empty(63), 1e-6),
        ValueError,
        "expected weight.size(-1) == 64 to match x.size(-1), got 63",
    ),
    "x_on_meta": (
        lambda: (empty(2, 4, device="meta"), empty(4), 1e-6),
        ValueError,
        "expected weight on device meta to match x, got mps",
    ),
    "weight_on_meta": (
        lambda: (empty(2, 4), empty(4, device="meta"), 1e-6),
        ValueError,
        "expected weight on device mps to match x, got meta",
    ),
    "x_none": (lambda: (None, empty(4), 1e-6), TypeError, "expected x to be a tensor, got None"),
    "both_none": (lambda: (None, None, 1e-6), TypeError, "expected x to be a tensor, got None"),
    **{
        f"eps_{eps:g}": (
            lambda eps=eps: (empty(2, 4), None, eps),
            ValueError,
            f"expected an eps >= 0 that is finite in float32, got {eps:g}",
        )
        for eps in (-1.0, math.nan, math.inf, 1e39, 1e300)
    },
    **{
        f"offset_{offset:g}": (
            lambda offset=offset: (empty(2, 4), None, 1e-6, offset),
            ValueError,
            f"expected an offset that is finite in float32, got {offset:g}",
        )
        for offset in (math.nan, -math.inf, 1e39)
    },
}


@pytest.mark.parametrize("case", REJECTED)
def test_rms_norm_rejects(case):
    args, error, text = REJECTED[case]
    x, weight, eps, *offset = args()
    kwargs = {"offset": offset[0]} if offset else {}
    assert_rejected("rms_norm", (x, weight, eps), kwargs, error, f"mpsk::rms_norm: {text}")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2**32, 1), "expected x.numel() / x.size(-1) <= 4294967295, got 4294967296"),
        ((1, 2**31), "expected x.size(-1) <= 2147483647, got 2147483648"),
    ],
)
def test_rms_norm_rejects_what_its_grid_cannot_hold(shape, text):
    with pytest.raises(ValueError, match="mpsk::rms_norm: ") as info:
        mpskernels.rms_norm(torch.empty(1, 1, device="mps").expand(shape))
    assert str(info.value) == f"mpsk::rms_norm: {text}"
