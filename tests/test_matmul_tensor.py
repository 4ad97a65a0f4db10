"""Matrix products on the matrix units of M5: which problems take them, and what they may cost.

Every test of the family runs on an M5 too, where there is one or one is simulated (`make test` does that); these are
about it alone.
"""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from cases import DTYPE_IDS, dtypes, random, to_mps
from test_matmul import check, launched

import mpskernels
from mpskernels import _C

pytestmark = pytest.mark.skipif(bool(_C.tensor_units_problem()), reason=f"needs M5: {_C.tensor_units_problem()}")


@pytest.fixture
def tf32():
    """Lets products of float32 round their operands."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def kernels(call, op="matmul"):
    return sorted(label.split("?")[0] for label in launched(call, op))


CHOICES = [
    # m, n, k, b along k: what a chip of 10 cores runs, in f32 and in f16 and bf16 where that differs
    ((17, 2048, 64, True), "matmul_tensor_{}_bm32_bn64_wm1_wn1"),
    ((256, 320, 64, False), ("matmul_tensor_{}_bm64_bn64_wm2_wn2", "matmul_tensor_{}_bm64_bn64_wm2_wn1")),
    ((256, 320, 64, True), "matmul_tensor_{}_bm64_bn64_wm2_wn2"),
    ((5 * 128, 8 * 128, 16, True), "matmul_tensor_{}_bm128_bn128_wm4_wn2"),
]


@dtypes
@pytest.mark.parametrize(("sizes", "kernel"), CHOICES, ids=str)
def test_matrix_units_are_used(dtype, sizes, kernel, tf32):
    m, n, k, b_along_k = sizes
    a = to_mps(random(m, k, dtype=dtype))
    b = to_mps(random(n, k, dtype=dtype).t() if b_along_k else random(k, n, dtype=dtype))
    assert kernels(lambda: mpskernels.matmul(a, b)) == [of_dtype(kernel, dtype)]


def of_dtype(kernel, dtype):
    kernel = kernel if isinstance(kernel, str) else kernel[dtype != torch.float32]
    return kernel.format(DTYPE_IDS[dtype])


def test_every_kernel_is_reached(tf32):
    reached = set()
    for dtype in DTYPE_IDS:
        reached |= {of_dtype(kernel, dtype) for _, kernel in CHOICES}
        for rows, columns in ((32, 1024), (320, 256)):
            x, w = to_mps((random(rows, 16, dtype=dtype), random(columns, 16, dtype=dtype)))
            reached |= set(kernels(lambda x=x, w=w: mpskernels.gated_linear(x, w, w), "gated_linear"))
        reached |= set(kernels(lambda d=dtype: mpskernels.grouped_matmul(*to_mps(groups(d))), "grouped_matmul"))
    assert reached == {name for name in _C.function_names() if name.startswith("matmul_tensor_")}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (random(64, 65, dtype=torch.float16)[:, :64], random(64, 64, dtype=torch.float16)),
        (random(64, 64, dtype=torch.float16), random(64, 136, dtype=torch.float16)[:, 4:68]),
        (random(64, 128, dtype=torch.float16)[:, ::2], random(64, 64, dtype=torch.float16)),
        (random(1, 64, dtype=torch.float16).expand(64, 64), random(64, 64, dtype=torch.float16)),
        (random(16, 64, dtype=torch.float16), random(64, 64, dtype=torch.float16)),
    ],
    ids=["pitch", "offset", "stride", "expanded", "few_rows"],
)
def test_what_they_do_not_read_goes_elsewhere(a, b):
    """Rows that are not aligned to 16 bytes, elements that do not lie side by side; and what memory bounds anyway."""
    assert not any("tensor" in kernel for kernel in kernels(lambda: check(a, b)))


def test_float32_is_rounded_only_where_torch_allows_it():
    a, b = random(256, 64), random(64, 320, seed=1)
    assert not any("tensor" in kernel for kernel in kernels(lambda: check(a, b)))
    exact = a.double() @ b.double()

    @contextlib.contextmanager
    def allowed_for_matmul():
        torch.set_float32_matmul_precision("high")
        yield
        torch.set_float32_matmul_precision("highest")

    for allowed in (allowed_for_matmul(), torch.backends.flags(fp32_precision="tf32")):
        out = []
        with allowed:
            found = kernels(lambda out=out: out.append(mpskernels.matmul(*to_mps((a, b)))))
        assert found == ["matmul_tensor_f32_bm64_bn64_wm2_wn2"]
        # Each operand is off by half of 2^-10 at most.
        error = (out[0].cpu().double() - exact).abs() / (a.abs().double() @ b.abs().double())
        assert 2**-16 < error.max() < 2**-10
        assert not any("tensor" in kernel for kernel in kernels(lambda: check(a, b)))


@pytest.fixture
def precision():
    """torch's settings for devices, which are put back."""
    matmul = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision(), [m.fp32_precision for m in matmul]
    yield
    torch.set_float32_matmul_precision(before[0])
    for m, value in zip(matmul, before[1], strict=True):
        m.fp32_precision = value


def test_what_torch_says_of_all_backends_counts_most(precision):
    def rounds():
        return any("tensor" in kernel for kernel in kernels(lambda: mpskernels.matmul(*operands)))

    operands = to_mps((random(256, 64), random(64, 320, seed=1)))
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # of another device
    assert not rounds()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # and the CPU: as set_float32_matmul_precision("medium")
    assert rounds()
    with torch.backends.flags(fp32_precision="ieee"):
        assert not rounds()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert not rounds()
    with torch.backends.flags(fp32_precision="tf32"):
        assert rounds()


def test_a_second_pair_may_lie_otherwise():
    a, b = random(256, 64, dtype=torch.float16), random(64, 320, dtype=torch.float16, seed=1)
    c, d = random(256, 80, dtype=torch.float16, seed=2), random(64, 336, dtype=torch.float16, seed=3)
    args = (*to_mps((a, b)), to_mps(c)[:, 8:72], to_mps(d)[:, 8:328])
    out = []
    found = kernels(lambda: out.append(torch.ops.mpsk.add_matmuls(*args)), "add_matmuls")
    assert found == ["matmul_tensor_f16_bm64_bn64_wm2_wn1"]
    expected = a.double() @ b.double() + c[:, 8:72].double() @ d[:, 8:328].double()
    torch.testing.assert_close(out[0].cpu().double(), expected, rtol=2**-10, atol=2**-14)


def groups(dtype):
    """Rows of three experts, 700 in all: one has none, and ten rows nobody has. And indices that name each row once."""
    x, w = random(700, 64, dtype=dtype), random(3, 64, 128, dtype=dtype, seed=1)
    indices = torch.randperm(700, generator=torch.Generator().manual_seed(0)).int()
    return x, w, torch.tensor([340, 340, 690], dtype=torch.int32), indices


@dtypes
@pytest.mark.parametrize("gathered", [False, True])
def test_products_of_groups_use_them(dtype, gathered, tf32):
    x, w, offsets, indices = groups(dtype)
    args = to_mps((x, w, offsets)) + ((to_mps(indices),) if gathered else ())
    [found] = kernels(lambda: mpskernels.grouped_matmul(*args), "grouped_matmul")
    assert found.startswith(f"matmul_tensor_{'gathered_' * gathered}{DTYPE_IDS[dtype]}")


@dtypes
def test_gathered_rows_and_their_gradients_are_those_of_copied_ones(dtype, tf32):
    x, w, offsets, indices = groups(dtype)
    out = []
    for rows, of in ((x, indices), (x[indices.long()], None)):
        leaves = [t.clone().requires_grad_() for t in to_mps((rows, w))]
        result = mpskernels.grouped_matmul(*leaves, to_mps(offsets), *([] if of is None else [to_mps(of)]))
        found = kernels(lambda result=result: result.backward(torch.ones_like(result)), "grouped_matmul_backward")
        assert any("gathered" in kernel for kernel in found) == (of is not None)
        of_x, of_w = (leaf.grad.cpu() for leaf in leaves)
        out.append((result.detach().cpu(), of_w, of_x if of is not None else of_x[indices.argsort()]))
    for gathered, copied in zip(*out, strict=True):
        # Steps of k differ, and with them the order of the sums.
        torch.testing.assert_close(gathered, copied, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@dtypes
def test_results_are_the_same_bits_every_time(dtype, tf32):
    a, b = to_mps((random(130, 520, dtype=dtype), random(520, 136, dtype=dtype)))
    first = mpskernels.matmul(a, b)
    for _ in range(2):
        assert torch.equal(mpskernels.matmul(a, b).cpu(), first.cpu())


def test_info_says_that_they_are_used():
    assert mpskernels.info().matrix_units == "used"
    assert "metal 4    matrix units used" in str(mpskernels.info())


def test_without_a_usable_library_in_metal_4_the_kernels_do_without_matrix_units(tmp_path):
    metallib = Path(_C.metallib_path())
    a = torch.randn(256, 256).half().to("mps")

    def kernel():
        before = _C.launches().get("matmul", {})
        out = mpskernels.matmul(a, a).cpu()
        [label] = [k for k, count in _C.launches()["matmul"].items() if count != before.get(k, 0)]
        return label.split("_f16")[0], out

    used, expected = kernel()
    try:
        assert used == "matmul_tensor"
        copy, second = tmp_path / "copy.metallib", tmp_path / "copy-metal4.metallib"
        shutil.copy(metallib, copy)
        _C.set_metallib(str(copy))
        assert _C.tensor_units_problem() == "the build had no compiler for Metal 4"
        assert kernel()[0] == "matmul_tile"
        torch.testing.assert_close(kernel()[1], expected, rtol=2**-10, atol=2**-7)
        second.write_bytes(metallib.read_bytes()[:5000])
        _C.set_metallib(str(copy))
        assert _C.tensor_units_problem().startswith(f"mpsk: cannot open the metallib {second}: ")
        assert mpskernels.info().matrix_units.startswith("not used: mpsk: cannot open")
        assert kernel()[0] == "matmul_tile"
        shutil.copy(metallib, second)
        _C.set_metallib(str(copy))
        assert _C.tensor_units_problem().startswith("mpsk: no kernel tensor_units_probe in ")
        assert kernel()[0] == "matmul_tile"
        shutil.copy(metallib.with_stem(metallib.stem + "-metal4"), second)
        _C.set_metallib(str(copy))
        assert kernel()[0] == "matmul_tensor"
        # Each file compiled in the language that it needs.
        _C.set_metallib(str(Path(mpskernels.__file__).parent / "metal"))
        used, out = kernel()
        assert used == "matmul_tensor"
        torch.testing.assert_close(out, expected, rtol=2**-10, atol=2**-7)
    finally:
        _C.set_metallib(str(metallib))
