import itertools
import math
import random as python_random
import re
from pathlib import Path

import pytest
import torch
from cases import DTYPE_IDS, assert_accurate, assert_rejected, dtypes, in_threads, random, to_mps

import mpskernels
from mpskernels import _C


def check(a, b):
    """a and b on the CPU; returns what the op made."""
    out = mpskernels.matmul(to_mps(a), to_mps(b))
    assert out.dtype == a.dtype
    assert out.is_contiguous()
    x, y = a.double(), b.double()
    expected = torch.matmul(x, y)
    # A sum in float32 takes k roundings of 2^-24. Most cancel and leave the root of k; not where all terms are equal.
    scale, sum_error = torch.matmul(x.abs(), y.abs()), 4 * math.sqrt(max(1, a.size(-1))) * 2**-24
    info = torch.finfo(a.dtype)
    if a.dtype == torch.float32:
        assert_accurate(out, expected, scale=scale, allowed=sum_error / info.eps)
    else:  # half an eps of the result for its rounding, and the sum's error
        scale = expected.abs() + scale * (sum_error / (0.5 * info.eps)) + info.smallest_normal
        assert_accurate(out, expected, scale=scale, allowed=0.5)
    return out


def launched(call, op="matmul"):
    """The pipelines that a call launches."""
    before = _C.launches().get(op, {})
    call()
    return [label for label, count in _C.launches().get(op, {}).items() if count != before.get(label, 0)]


# Around the edges of tiles, 32 and 64, of their steps along k, 16 and 32, and of vectors, 4 and 8.
SHAPES = [
    (1, 1, 1),
    (1, 5, 3),
    (3, 1, 7),
    (7, 9, 16),
    (8, 8, 8),
    (31, 33, 17),
    (32, 32, 32),
    (33, 65, 40),
    (64, 64, 100),
    (65, 40, 33),
    (1, 130, 257),
    (130, 1, 64),
    (100, 129, 1),
    (257, 300, 1000),
    (520, 514, 24),  # enough for the large tile
    (513, 521, 19),
]


@dtypes
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_matmul_matches_reference(dtype, m, n, k):
    check(random(m, k, dtype=dtype), random(k, n, dtype=dtype, seed=1))


def operands(dtype, m, n, k, batch, b_along_k):
    a = random(batch, m, k, dtype=dtype) if b_along_k or n >= m else random(batch, k, m, dtype=dtype).mT
    return a, random(batch, n, k, dtype=dtype, seed=1).mT if b_along_k else random(batch, k, n, dtype=dtype, seed=1)


LAYOUTS = {
    "rows": lambda t, m, n: t(m, n),
    "columns": lambda t, m, n: t(n, m).T,
    "unaligned_rows": lambda t, m, n: t(m, n + 3)[:, :n],
    "aligned_rows": lambda t, m, n: t(m, (n + 15) // 8 * 8)[:, :n],
    "offset_rows": lambda t, m, n: t(m + 1, n + 1)[1:, 1:],
    "offset_columns": lambda t, m, n: t(n + 1, m + 1)[1:, 1:].T,
    "aligned_offset": lambda t, m, n: t(m, 8 + (n + 7) // 8 * 8)[:, 8 : 8 + n],
    "every_second": lambda t, m, n: t(2 * m, 3 * n)[::2, ::3],
    "every_second_column": lambda t, m, n: t(3 * n, 2 * m)[::3, ::2].T,
    "one_row": lambda t, m, n: t(1, n).expand(m, n),
    "one_column": lambda t, m, n: t(m, 1).expand(m, n),
    "one_number": lambda t, m, n: t(1, 1).expand(m, n),
    "windows": lambda t, m, n: t(5 * m + n).as_strided((m, n), (5, 1)),
}


@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
def test_matmul_reads_any_strides(a_layout, b_layout):
    a = LAYOUTS[a_layout](random, 37, 43)
    b = LAYOUTS[b_layout](lambda *shape: random(*shape, seed=1), 43, 70)
    check(a, b)


ALIGNED = ["rows", "columns", "aligned_rows", "aligned_offset", "offset_columns", "one_row", "one_column"]


@dtypes
@pytest.mark.parametrize("b_layout", ALIGNED)
@pytest.mark.parametrize("a_layout", ALIGNED)
def test_matmul_of_few_rows_or_columns_reads_any_strides(a_layout, b_layout, dtype):
    k, many = 88, 40

    def operands(m, n):
        a = LAYOUTS[a_layout](lambda *shape: random(*shape, dtype=dtype), m, k)
        return a, LAYOUTS[b_layout](lambda *shape: random(*shape, dtype=dtype, seed=1), k, n)

    for few in (1, 2, 4, 8, 16):
        check(*operands(few, many))
        check(*operands(many, few))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=DTYPE_IDS.get)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul_reads_any_strides_of_two_bytes(dtype, layout):
    def tensor(*shape):
        return random(*shape, dtype=dtype)

    check(LAYOUTS[layout](tensor, 72, 40), LAYOUTS[layout](tensor, 40, 80))


def constants_of(label):
    """The kernel's name and the constants that are true."""
    kernel, constants = label.split("?")
    return kernel, {name for name, value in (pair.split("=") for pair in constants.split(",")) if value == "1"}


@pytest.mark.parametrize(("a_along_m", "b_along_k", "vectors"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(("m", "n"), [(64, 96), (528, 520)], ids=["small", "large"])
def test_matmul_specialises_for_layout(m, n, a_along_m, b_along_k, vectors):
    k = 48
    if not vectors:
        m, n, k = m + 1, n + 1, k + 1
    a = random(k, m).T if a_along_m else random(m, k)
    b = random(n, k, seed=1).T if b_along_k else random(k, n, seed=1)
    [label] = launched(lambda: check(a, b))
    kernel, constants = constants_of(label)
    assert kernel.startswith("matmul_tile_f32_bm")
    expected = {"a_along_m": a_along_m, "b_along_k": b_along_k, "a_vectors": vectors, "b_vectors": vectors}
    assert constants == {name for name, value in expected.items() if value}


BATCHES = [
    ((3, 5, 7), (3, 7, 6)),
    ((3, 5, 7), (7, 6)),
    ((5, 7), (4, 7, 6)),
    ((1, 5, 7), (1, 7, 6)),
    ((7, 1, 5), (7, 5, 3)),
    ((4, 1, 33), (33, 70)),
    ((4, 1, 33), (4, 33, 1)),
    ((2, 1, 5, 7), (3, 7, 6)),
    ((2, 3, 5, 7), (2, 1, 7, 6)),
    ((2, 3, 5, 7), (1, 3, 7, 6)),
    ((2, 1, 3, 1, 5, 7), (1, 4, 1, 2, 7, 6)),
]


@dtypes
@pytest.mark.parametrize(("a_shape", "b_shape"), BATCHES, ids=str)
def test_matmul_broadcasts_batches(dtype, a_shape, b_shape):
    check(random(*a_shape, dtype=dtype), random(*b_shape, dtype=dtype, seed=1))


def test_matmul_reads_batches_of_any_strides():
    a = random(5, 4, 3, 2, 6).permute(3, 1, 0, 2, 4)  # (2, 4, 5, 3, 6)
    b = random(6, 5, 4, 2, 7, seed=1).permute(3, 2, 1, 0, 4)  # (2, 4, 5, 6, 7)
    check(a, b)
    check(a[:, ::2], b[:, 1::2])
    check(a.transpose(-1, -2), b[:, :, :, :3])
    check(random(1, 5, 6).expand(3, 5, 6), random(6, 4))
    check(random(1, 5, 6).expand(3, 5, 6), random(1, 6, 4).expand(3, 6, 4))
    check(random(3, 1, 6)[:, :, ::2], random(3, 4))


def test_matmul_strides_and_shapes_at_random():
    dice = python_random.Random(0)

    def operand(shape, dtype, seed):
        """A view of the shape whose dimensions lie in any order, with steps."""
        steps = [dice.choice([1, 1, 1, 2, 3]) for _ in shape]
        order = dice.sample(range(len(shape)), len(shape))
        base = random(*(shape[d] * steps[d] for d in order), dtype=dtype, seed=seed)
        stepped = base[tuple(slice(None, None, steps[d]) for d in order)]
        view = stepped.permute([order.index(d) for d in range(len(shape))])
        assert list(view.shape) == shape
        return view

    for trial in range(60):
        m, n, k = (dice.choice([1, 2, 7, 16, 33, 40, 64]) for _ in range(3))
        batch = [dice.choice([1, 2, 3]) for _ in range(dice.randint(0, 3))]
        a_batch, b_batch = (
            [dice.choice([size, size, 1]) for size in batch][dice.choice([0, 0, 1]) :] for _ in range(2)
        )
        dtype = dice.choice(list(DTYPE_IDS))
        check(operand([*a_batch, m, k], dtype, trial), operand([*b_batch, k, n], dtype, trial + 1000))


def test_matmul_of_a_batch_that_shares_b_is_one_product():
    x, weight = random(8, 5, 16), random(24, 16, seed=1)
    [label] = launched(lambda: check(x, weight.T))
    assert label.startswith("matmul_tile_f32_bm16_")
    # 768 rows of 320 columns are enough for the large tile; 128 batches of 6 rows would not be.
    [label] = launched(lambda: check(random(128, 6, 32), random(32, 320)))
    assert label.startswith("matmul_tile_f32_bm64_bn64_")


def test_matmul_takes_eight_batch_dims():
    def operands(dims):
        # Every second of each: no stride describes two of them.
        return random(*[3] * dims, 2, 3)[(slice(None, None, 2),) * dims], random(*[2] * dims, 3, 2, seed=1)

    check(*operands(8))
    a, b = operands(9)
    with pytest.raises(NotImplementedError, match=r"mpsk::matmul: ") as info:
        mpskernels.matmul(to_mps(a), to_mps(b))
    assert str(info.value) == (
        "mpsk::matmul: expected at most 8 batch dimensions that no single stride describes, got 9; "
        "pass contiguous operands"
    )
    check(a.contiguous(), b.contiguous())


@dtypes
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((0, 3), (3, 4)),
        ((2, 3), (3, 0)),
        ((2, 0), (0, 4)),
        ((70, 0), (0, 65)),
        ((0, 0), (0, 0)),
        ((0, 2, 3), (3, 4)),
        ((0, 2, 3), (1, 3, 4)),
        ((3, 2, 0), (0, 4)),
        ((0,), (0,)),
        ((3,), (3,)),
        ((3,), (3, 5)),
        ((3,), (2, 3, 5)),
        ((5, 3), (3,)),
        ((2, 5, 3), (3,)),
    ],
    ids=str,
)
def test_matmul_handles_edges(dtype, a_shape, b_shape):
    check(random(*a_shape, dtype=dtype), random(*b_shape, dtype=dtype, seed=1))


def test_matmul_of_float32_takes_whatever_torch_says_of_precision():
    """torch's own getter throws where the settings of devices differ."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        check(random(64, 64), random(64, 64, seed=1))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_matmul_of_nothing_launches_nothing():
    assert launched(lambda: check(random(0, 3), random(3, 4))) == []


def test_matmul_reads_strided_vectors():
    check(random(9)[::2], random(5, 6)[:, ::3])
    check(random(9)[::2], random(16, seed=1)[1::3])
    check(random(7, 4).T[::2], random(14, seed=1)[1::2])


# Batch, m, n, k, b along k: enough of them that a chip of 10 cores does not split k; and two that one does.
LONG_K = [
    ((1, 5, 64, 32_800, False), "tile"),
    ((2, 5, 40, 32_800, True), "tile"),
    ((1, 17, 17, 40_000, True), "tile"),
    ((1, 1, 32, 32_800, True), "skinny_k"),
    ((1, 4, 32, 32_800, True), "skinny_k"),
    ((1, 3, 2, 40_000, True), "skinny_k"),
    ((8, 1, 5, 32_800, False), "skinny_n"),
    ((8, 3, 5, 32_800, False), "skinny_n"),
]


@dtypes
@pytest.mark.parametrize(("sizes", "kernel"), LONG_K, ids=str)
def test_matmul_of_a_long_k(dtype, sizes, kernel):
    """More than 15 bits count, in one threadgroup too."""
    batch, m, n, k, b_along_k = sizes
    labels = launched(lambda: check(*operands(dtype, m, n, k, batch, b_along_k)))
    kernels = {label.split(f"_{DTYPE_IDS[dtype]}")[0] for label in labels} - {"matmul_sum"}
    assert kernels in ({f"matmul_{kernel}"}, {"matmul_tensor"} if kernel == "tile" else ())  # the latter on M5


MANY = [
    (1, 1, "packed"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [(17, 17, "tile"), (1, 17, "skinny_n")]),
]


@pytest.mark.parametrize(("m", "n", "kernel"), MANY)
def test_matmul_of_more_than_65536_products(m, n, kernel):
    [label] = launched(lambda: check(random(65_540, m, 2), random(65_540, 2, n, seed=1)))
    assert label.startswith(f"matmul_{kernel}_f32_")


@pytest.mark.slow
def test_matmul_reads_past_4_gigabytes():
    rows, identity = random(2, 32, dtype=torch.float16), torch.eye(32, dtype=torch.float16, device="mps")
    memory = torch.empty(2**31 + 40, dtype=torch.float16, device="mps")
    for offset in (0, 1):  # with vectors and without
        far = memory.as_strided((2, 32), (2**31, 1), offset)
        far.copy_(rows)
        assert torch.equal(mpskernels.matmul(far, identity).cpu(), rows)
        assert torch.equal(mpskernels.matmul(identity, far.T).cpu(), rows.T)
        assert torch.equal(mpskernels.matmul(far.unsqueeze(1), identity.expand(2, 32, 32)).cpu(), rows.unsqueeze(1))
        assert torch.equal(mpskernels.matmul(far[1:], identity).cpu(), rows[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=DTYPE_IDS.get)
def test_matmul_sums_in_float32(dtype):
    # A sum in half stops at 2048, one in bfloat at 256.
    out = check(torch.ones(2, 4096, dtype=dtype), torch.ones(4096, 3, dtype=dtype))
    assert out.eq(4096).all()


@dtypes
@pytest.mark.parametrize("size", [1, 600], ids=["small", "large"])
def test_matmul_keeps_nan_and_inf_to_their_rows_and_columns(dtype, size):
    a, b = torch.ones(size + 34, 33), torch.ones(33, size + 36)
    a[3, 5], a[7, 32], b[20, 4], b[32, size + 35] = math.nan, math.inf, -math.inf, math.nan
    b[32, 8] = 0  # inf * 0
    a[size + 33], b[:, size + 34] = 0, 0  # 0 * inf
    out = mpskernels.matmul(to_mps(a.to(dtype)), to_mps(b.to(dtype)))
    torch.testing.assert_close(out.cpu().float(), a @ b, equal_nan=True, rtol=0, atol=0)


def test_matmul_from_several_threads():
    def work(seed):
        for size in (5, 33, 65, 100):
            a, b = random(size + seed, 40, seed=seed), random(40, size, seed=seed + 10)
            out = mpskernels.matmul(to_mps(a), to_mps(b)).cpu()
            torch.testing.assert_close(out, (a.double() @ b.double()).float(), rtol=1e-4, atol=1e-4)

    in_threads(work)


def test_matmul_waits_for_what_it_reads():
    a, b = torch.ones(33, 20, device="mps"), to_mps(random(20, 35))
    product = mpskernels.matmul(a, b)
    twice = mpskernels.matmul(product, b.T)
    a.fill_(2)
    torch.testing.assert_close(product.cpu(), torch.ones(33, 20) @ b.cpu())
    torch.testing.assert_close(twice.cpu(), torch.ones(33, 20) @ b.cpu() @ b.cpu().T, rtol=1e-4, atol=1e-4)


FEW = ("tile_{}_bm16_bn32_bk64_wm1_wn2_wk4", "tile_{}_bm16_bn32_bk128_wm1_wn2_wk4")
WIDE = ("tile_{}_bm16_bn32_bk64_wm1_wn2_wk4", "tile_{}_bm16_bn64_bk64_wm1_wn2_wk4")
FEWEST = ("tile_{}_bm16_bn16_bk128_wm1_wn1_wk8", "tile_{}_bm16_bn16_bk256_wm1_wn1_wk8")
LARGE = ("tile_{}_bm64_bn64_bk16_wm2_wn2_wk1", "tile_{}_bm64_bn64_bk16_wm1_wn2_wk1")
TALL = ("tile_{}_bm40_bn64_bk16_wm1_wn2_wk1", "tile_{}_bm40_bn64_bk32_wm1_wn2_wk1")
FLAT = "tile_{}_bm32_bn64_bk16_wm1_wn2_wk1"
SHARED = ("tile_{}_bm40_bn64_bk32_wm1_wn2_wk4", "tile_{}_bm40_bn64_bk64_wm1_wn2_wk4")
SMALL = "tile_{}_bm32_bn32_bk16_wm1_wn2_wk1"
DEEPER = (SMALL, "tile_{}_bm32_bn64_bk32_wm1_wn2_wk1")
SMALL_SHARED = "tile_{}_bm32_bn32_bk64_wm1_wn1_wk4"
BASE = (SMALL, "tile_{}_bm64_bn32_bk32_wm2_wn2_wk1")
CHOICES = [
    # m, n, k, batch, b along k: what a chip of 10 cores runs, in f32 and in f16 and bf16 where that differs
    ((1, 300, 40, 1, True), "skinny_k_{}_r1_p1"),
    ((2, 300, 40, 1, True), "skinny_k_{}_r2_p1"),
    ((4, 300, 40, 1, True), "skinny_k_{}_r4_p1"),
    ((300, 4, 40, 1, True), "skinny_k_{}_r4_p1"),  # swapped, and a is along k
    ((1, 300, 40, 1, False), "skinny_n_{}_r1"),
    ((3, 300, 40, 1, False), "skinny_n_{}_r4"),
    ((5, 300, 40, 1, False), WIDE),
    ((300, 8, 40, 1, False), WIDE),
    ((5, 300, 40, 1, True), FEWEST),
    ((9, 1280, 40, 1, True), FEW),
    ((16, 16, 40, 15, True), FEWEST),
    ((16, 16, 40, 16, True), "packed_{}_bm16_bn16_bk16"),
    ((1280, 512, 64, 1, True), LARGE),
    ((1280, 512, 64, 1, False), LARGE),
    ((200, 768, 64, 1, True), TALL),
    ((456, 208, 32, 1, False), FLAT),
    ((99, 560, 32, 1, True), DEEPER),
    ((33, 512, 64, 1, True), SHARED),
    ((160, 256, 64, 1, True), SMALL),
    ((192, 192, 64, 1, True), BASE),
    ((96, 160, 64, 1, True), SMALL_SHARED),
    ((17, 96, 8, 1, False), FEW),
    ((17, 33, 8, 1, True), (FEW[0], FEWEST[1])),
    ((54, 482, 768, 1, True), SMALL_SHARED),  # k of some columns split
    ((9, 33, 4096, 1, False), WIDE),  # of all
]


def chosen(dtype, *sizes):
    """The kernels that one matmul of the sizes launches."""
    return launched(lambda: check(*operands(dtype, *sizes)))


# Where there are matrix units, test_matmul_tensor.py has the choices.
without_tensor_units = pytest.mark.skipif(not _C.tensor_units_problem(), reason="M5 chooses other kernels")


@without_tensor_units
@dtypes
@pytest.mark.parametrize(("sizes", "kernel"), CHOICES, ids=str)
def test_matmul_chooses_a_kernel(dtype, sizes, kernel):
    kernels = [label.split("?")[0] for label in chosen(dtype, *sizes)]
    kernel = kernel if isinstance(kernel, str) else kernel[dtype != torch.float32]
    name = DTYPE_IDS[dtype]
    split = sizes[2] >= 512
    assert sorted(kernels) == sorted([f"matmul_{kernel.format(name)}", *([f"matmul_sum_{name}"] * split)])


@without_tensor_units
def test_every_kernel_is_reached_by_a_choice():
    """Those that this chip's size keeps from being chosen are listed, with the size that they need."""
    text = (Path(__file__).parents[1] / "metal/matmul_variants.h").read_text()
    built = {name for name in _C.function_names() if name.startswith("matmul_")}
    assert len(built) == len(re.findall(r"^  X\(", text, re.MULTILINE)) - 6  # two kernels of the backward pass
    built -= {name for name in built if name.startswith("matmul_tensor_")}
    shapes = [sizes for sizes, _ in CHOICES]
    reached = {label.split("?")[0] for dtype in DTYPE_IDS for sizes in shapes for label in chosen(dtype, *sizes)}
    gated = {
        label.split("?")[0]
        for dtype in DTYPE_IDS
        for m, n in [(1, 40), (4, 40), (8, 40), (32, 40), (40 * 64, 32)]
        for label in launched(
            lambda d=dtype, m=m, n=n: mpskernels.gated_linear(
                *to_mps((random(m, 8, dtype=d), random(n, 8, dtype=d), random(n, 8, dtype=d)))
            ),
            "gated_linear",
        )
    }
    # fp32 by a Max chip's choice only
    assert built - reached - gated <= {
        "matmul_tile_f16_bm64_bn64_bk16_wm2_wn2_wk1",
        "matmul_tile_bf16_bm64_bn64_bk16_wm2_wn2_wk1",
    }
    assert reached | gated <= built


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


REJECTED = {
    "k": (
        lambda: (empty(2, 64), empty(63, 2)),
        ValueError,
        "expected b.size(-2) == 64 to match a.size(-1), got 63",
    ),
    "k_of_vector": (
        lambda: (empty(2, 4), empty(3)),
        ValueError,
        "expected b.size(-1) == 4 to match a.size(-1), got 3",
    ),
    "batch": (
        lambda: (empty(4, 2, 2), empty(3, 2, 2)),
        ValueError,
        "expected b.size(-3) == 4 or 1 to match a.size(-3), got 3",
    ),
    "outer_batch": (
        lambda: (empty(0, 4, 2, 2), empty(3, 4, 2, 2)),
        ValueError,
        "expected b.size(-4) == 0 or 1 to match a.size(-4), got 3",
    ),
    "a_scalar": (lambda: (empty(), empty(3, 2)), ValueError, "expected a.dim() >= 1, got 0"),
    "b_scalar": (lambda: (empty(2, 3), empty()), ValueError, "expected b.dim() >= 1, got 0"),
    "a_dtype": (
        lambda: (empty(2, 2, dtype=torch.int32), empty(2, 2, dtype=torch.int32)),
        TypeError,
        "expected a of dtype float32, float16 or bfloat16, got int32",
    ),
    "b_dtype": (
        lambda: (empty(2, 2, dtype=torch.float16), empty(2, 2)),
        TypeError,
        "expected b of dtype float16 to match a, got float32",
    ),
    "a_on_cpu": (
        lambda: (empty(2, 2, device="cpu"), empty(2, 2)),
        ValueError,
        'expected a on device mps, got cpu; move it with a.to("mps")',
    ),
    "b_on_cpu": (
        lambda: (empty(2, 2), empty(2, 2, device="cpu")),
        ValueError,
        'expected b on device mps, got cpu; move it with b.to("mps")',
    ),
    "a_on_meta": (
        lambda: (empty(2, 2, device="meta"), empty(2, 2)),
        ValueError,
        "expected b on device meta to match a, got mps",
    ),
    "b_on_meta": (
        lambda: (empty(2, 2), empty(2, 2, device="meta")),
        ValueError,
        "expected b on device mps to match a, got meta",
    ),
    "a_none": (lambda: (None, empty(2, 2)), TypeError, "expected a to be a tensor, got None"),
    "b_none": (lambda: (empty(2, 2), None), TypeError, "expected b to be a tensor, got None"),
    "both_none": (lambda: (None, None), TypeError, "expected a to be a tensor, got None"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_matmul_rejects(case):
    args, error, text = REJECTED[case]
    assert_rejected("matmul", args(), {}, error, f"mpsk::matmul: {text}")


@pytest.mark.parametrize(
    ("m", "n", "batch", "text"),
    [
        (2**20, 2**20, 1, "expected at most 134217727 tiles of 64x64 in a product, got 16384 x 16384"),
        (2, 1, 2**31, "expected at most 2147483647 products in a batch, got 2147483648"),
    ],
    ids=["tiles", "batch"],
)
def test_matmul_rejects_what_its_grid_cannot_hold(m, n, batch, text):
    # Rows side by side keep the batch from becoming rows of one product.
    a, b = (torch.empty(2**21, device="mps").as_strided((batch, *shape), (0, 1, 2)) for shape in ((m, 2), (2, n)))
    with pytest.raises(NotImplementedError, match="mpsk::matmul: ") as info:
        mpskernels.matmul(a, b)
    assert str(info.value) == f"mpsk::matmul: {text}"


@dtypes
@pytest.mark.parametrize(
    ("a_shape", "b_shape"), [((3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (2, 4, 3)), ((2, 0), (0, 3))], ids=str
)
def test_matmul_passes_opcheck(dtype, a_shape, b_shape):
    args = to_mps((random(*a_shape, dtype=dtype), random(*b_shape, dtype=dtype)))
    torch.library.opcheck(torch.ops.mpsk.matmul.default, args)


def test_matmul_compiles_once_for_all_sizes():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(
        lambda a, b: mpskernels.matmul(a, b.transpose(-1, -2)), backend=backend, fullgraph=True, dynamic=True
    )
    for batch, m, n, k in [(2, 5, 7, 9), (3, 34, 6, 40), (4, 6, 33, 5)]:
        a, b = to_mps((random(batch, m, k), random(batch, n, k, seed=1)))
        assert torch.equal(compiled(a, b).cpu(), mpskernels.matmul(a, b.transpose(-1, -2)).cpu())
    assert len(graphs) == 1


@pytest.mark.slow
def test_matmul_writes_past_2_to_the_31_elements():
    rows = 2**25 + 1  # of 64 columns: 64 outputs more than 2^31, 4.3 GB
    a = torch.zeros(rows, 2, dtype=torch.float16, device="mps")
    a[0], a[2**24], a[-1] = 1, 2, 3
    b = to_mps(random(2, 64, dtype=torch.float16))
    out = mpskernels.matmul(a, b)
    expected = b.cpu().float().sum(0).half()
    for row, factor in ((0, 1), (2**24, 2), (rows - 1, 3)):
        torch.testing.assert_close(out[row].cpu(), expected * factor, rtol=2e-3, atol=2e-3)
    assert not out[1:1000].cpu().any()
    assert not out[-1000:-1].cpu().any()
