"""Counts of matrix products: what must be multiplied and moved, and next to nothing else."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mpskernels
from bench import light
from mpskernels import _C, simulator
from mpskernels.simulator.chips import find

pytestmark = pytest.mark.skipif(not _C.tensor_units_problem(), reason="M5 chooses other kernels")

ROOT = Path(__file__).resolve().parents[2]
DTYPES = pytest.mark.parametrize("dtype", light.DTYPES.values(), ids=light.DTYPES)
BUSY_SIMDGROUPS = 8  # of a core, without which it waits: matmul_busy_multiplying


def product(m, n, k, dtype, *, a_along_m=False, b_along_k=True):
    """Operands without values: what the kernels do does not depend on them."""
    a = torch.empty((k, m) if a_along_m else (m, k), dtype=dtype, device="mps")
    b = torch.empty((n, k) if b_along_k else (k, n), dtype=dtype, device="mps")
    return a.t() if a_along_m else a, b.t() if b_along_k else b


def dispatches(call, only=None):
    with simulator.profile(only=only) as profile:
        call()
        torch.mps.synchronize()
    return profile.dispatches


def tile(dispatch):
    """bm, bn, wk of its kernel."""
    return [int(re.search(rf"_{key}(\d+)", dispatch.kernel)[1]) for key in ("bm", "bn", "wk")]


@DTYPES
@pytest.mark.parametrize("b_along_k", [True, False])
@pytest.mark.parametrize("n", [320, 1344])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16])
def test_few_rows_read_each_weight_once(rows, n, b_along_k, dtype):
    x, weight = product(rows, n, 2048, dtype, b_along_k=b_along_k)
    dispatch, *sum_of_splits = dispatches(lambda: mpskernels.matmul(x, weight))
    assert not (b_along_k and sum_of_splits)
    of_x, of_weight = x.numel() * dtype.itemsize, weight.numel() * dtype.itemsize
    assert dispatch.device_read_unique == of_x + of_weight
    # Each threadgroup reads x once, and its last row again for each that the kernel has room for. Where eight lanes
    # read a row of b, each of them does, and splits of k share x.
    lanes_with_a_row = "skinny_n" in dispatch.kernel
    times = 8 * math.ceil(n * dtype.itemsize / 128) if lanes_with_a_row else dispatch.groups
    room = re.search(r"_r(\d)_", dispatch.kernel.partition("?")[0] + "_")
    asked = dispatch.device_read - times * of_x * (int(room[1]) / rows if room else 1)
    assert of_weight <= asked <= 1.02 * of_weight
    assert dispatch.coalescing >= 0.95
    if not lanes_with_a_row:
        loads = dispatch.device_read / (16 * 32)
        assert loads <= dispatch.device_accesses <= 1.1 * loads


GRIDS = [(1280, 512), (200, 1792), (154, 2048), (40, 640), (33, 40), (160, 320), (64, 128), (64, 64)]


@DTYPES
@pytest.mark.parametrize(("m", "n"), GRIDS)
@pytest.mark.parametrize("k", [72, 154])
def test_fragments_are_multiplied_once_for_each_that_the_tiles_hold(m, n, k, dtype):
    [dispatch] = dispatches(lambda: mpskernels.matmul(*product(m, n, k, dtype)), only=0)
    bm, bn, _ = tile(dispatch)
    assert dispatch.matrix_operations == bm // 8 * bn // 8 * math.ceil(k / 8)


@DTYPES
@pytest.mark.parametrize("b_along_k", [False, True])
@pytest.mark.parametrize("a_along_m", [False, True])
@pytest.mark.parametrize(("m", "n"), GRIDS)
def test_tiles_are_loaded_without_bank_conflicts(m, n, a_along_m, b_along_k, dtype):
    operands = product(m, n, 256, dtype, a_along_m=a_along_m, b_along_k=b_along_k)
    [dispatch] = dispatches(lambda: mpskernels.matmul(*operands), only=0)
    assert dispatch.bank_cycles_ideal > 0
    assert dispatch.bank_conflicts <= 1.1


@DTYPES
@pytest.mark.parametrize("b_along_k", [False, True])
def test_a_large_product_asks_for_what_its_tiles_need(b_along_k, dtype):
    m, n, k = 1280, 512, 64
    [dispatch] = dispatches(lambda: mpskernels.matmul(*product(m, n, k, dtype, b_along_k=b_along_k)))
    bm, bn, _ = tile(dispatch)
    assert bm * bn >= 2048
    assert dispatch.matrix_operations == m * n * k // 512
    assert dispatch.device_bytes <= 1.05 * dtype.itemsize * (m * n * k * (1 / bm + 1 / bn) + m * n)


@DTYPES
def test_rows_are_taken_together_although_no_stride_describes_them(dtype):
    """The longest dimension that shares b fills the tiles: b is read once for each of them, not once for 2 rows."""
    t, rows, k, n = 2, 256, 64, 96
    x = torch.empty(t, rows, k, dtype=dtype, device="mps").transpose(0, 1)
    weight = torch.empty(n, k, dtype=dtype, device="mps")
    [dispatch] = dispatches(lambda: mpskernels.linear(x, weight), only=0)
    bm, bn, _ = tile(dispatch)
    assert dispatch.groups == t * math.ceil(rows / bm) * math.ceil(n / bn)
    leaves = [torch.empty_like(tensor).requires_grad_() for tensor in (x, weight)]
    out = mpskernels.linear(*leaves)
    grad = torch.empty_like(out)
    of_x, of_weight = dispatches(lambda: torch.autograd.grad(out, leaves, grad), only=0)
    for dispatch in (of_x, of_weight):
        assert dispatch.matrix_operations <= 2 * t * rows * n * k // 512  # k of 256, twice, rather than of 2


def sizes_of_few_threadgroups(dtype, cores):
    """Of those of real models: where there are fewer than four for each core, although tiles of 16x16, gated ones of
    16x32, would give as many. They have eight simdgroups."""
    few = set()
    for job in light.products(dtype):
        dispatch = light.launched(job)[0]
        allowed = math.ceil(job.m / 16) * math.ceil(job.n / (32 if job.op == "gated_linear" else 16))
        launched = dispatch.groups * dispatch.simdgroups_per_threadgroup
        assert launched >= min(allowed * 8, BUSY_SIMDGROUPS * cores), job
        if dispatch.groups < min(allowed, 4 * cores):
            few.add((job.m, job.n, job.k))
    return few


@pytest.mark.parametrize("dtype", light.DTYPES)
def test_grids_keep_every_core_busy_whenever_the_sizes_allow_it(dtype):
    assert not sizes_of_few_threadgroups(dtype, find().gpu_cores)


@pytest.mark.parametrize(
    ("chip", "few"),
    [
        ("m4max", {(154, 1280, 2048), (197, 1024, 1024), (197, 1024, 4096)}),
        ("m3ultra", {(197, 1024, 1024)}),
    ],
)
def test_grids_keep_more_cores_busy_unless_that_takes_longer(chip, few):
    """By more than matmul_idle_units, of the estimate. In a process of its own, as a process simulates one chip."""
    cores = find(chip).gpu_cores
    code = f"import json, test_profile_matmul as t; print(json.dumps([*t.sizes_of_few_threadgroups('f16', {cores})]))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/simulator")])
    environment = os.environ | {"PYTHONPATH": path, "MPSK_SIMULATE": chip}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {tuple(sizes) for sizes in json.loads(done.stdout)} == few


def test_shares_of_the_depth_are_added_up_without_another_launch():
    found = dispatches(lambda: mpskernels.matmul(*product(16, 1280, 4096, torch.float16)), only=0)
    assert [tile(dispatch)[2] > 1 for dispatch in found] == [True]
    assert found[0].barriers == 2 * 4096 // 128 + 2


def test_the_table_says_what_kernels_do_beside_multiplying():
    """Issue slots: those of fragment multiplications, as published for M1, and of all else."""
    text = (ROOT / "csrc/matmul_select.h").read_text()
    said = {}
    for sizes, *numbers in re.findall(r"kernel::tile, ([^}]*)\},\s+\.overhead = ([\d.]+),\s+\.ends = ([\d.]+)", text):
        bm, bn, bk, wm, wn, wk = [*map(int, sizes.split(", ")), 1][:6]
        said.setdefault(f"bm{bm}_bn{bn}_bk{bk}_wm{wm}_wn{wn}_wk{wk}", []).append(tuple(map(float, numbers)))
    found = set()
    for dtype in (torch.float32, torch.float16):
        for m, n in GRIDS:
            both = [
                dispatches(lambda k=k, m=m, n=n, dtype=dtype: mpskernels.matmul(*product(m, n, k, dtype)), only=0)
                for k in (256, 512)
            ]
            if len({tuple(d.kernel for d in each) for each in both}) > 1:
                continue  # k decides
            name = re.search(r"bm\w*", both[0][0].kernel)[0]
            multiplies = [17 * d.matrix_operations for [d] in both]
            other = [(d.integer_operations + d.f32_flops / 2) / (32 * d.active) + 8 * d.simd_operations for [d] in both]
            overhead = (other[1] - other[0]) / (multiplies[1] - multiplies[0])
            of_a_k = (multiplies[1] - multiplies[0]) / 256 * (1 + overhead)
            ends = (other[0] - overhead * multiplies[0]) / of_a_k
            near = pytest.approx(overhead, rel=0.1), pytest.approx(ends, rel=0.15)
            assert any(both == near for both in said[name])
            found.add(name)
    assert len(found) >= 8, found


def test_threadgroup_memory_is_what_the_choice_reckons_with():
    """matmul_select.h counts rows an odd number of 16 bytes apart, in the larger of both orientations, and the sums of
    shares of k."""
    for dtype in light.DTYPES.values():
        for m, n in GRIDS:
            [dispatch] = dispatches(lambda m=m, n=n, dtype=dtype: mpskernels.matmul(*product(m, n, 64, dtype)), only=0)
            bm, bn, wk = tile(dispatch)
            bk = int(re.search(r"_bk(\d+)", dispatch.kernel)[1])

            def bytes_of(rows, columns, itemsize=dtype.itemsize):
                return rows * ((columns * itemsize // 16) | 1) * 16

            of_tiles = max(bytes_of(bm, bk), bytes_of(bk, bm)) + max(bytes_of(bk, bn), bytes_of(bn, bk))
            assert dispatch.threadgroup_memory == max(of_tiles, 4 * (wk - 1) * bm * bn)
