"""The work of the kernels for M5's matrix units, counted: in a process of its own, as a process simulates one chip."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import re
import torch, mpskernels
from mpskernels.simulator import profile

def run(m, n, k, along_m, along_k, gated):
    a = torch.empty(k, m, dtype=torch.float16, device="mps").t() if along_m else torch.empty(
        m, k, dtype=torch.float16, device="mps")
    b = torch.empty(n, k, dtype=torch.float16, device="mps").t() if along_k else torch.empty(
        k, n, dtype=torch.float16, device="mps")
    with profile() as p:
        mpskernels.gated_linear(a, b.t(), b.t()) if gated else mpskernels.matmul(a, b)
    return p.dispatches
"""


def counted(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPSK_SIMULATE": "m5"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("gated", [False, True])
def test_no_more_work_than_the_padded_grid_needs(gated):
    counted(f"""
    of_two = ((24, 1024, 16, 32, 64), (304, 304, 80, 32, 64), (640, 1024, 16, 64, 64))
    of_one = ((400, 160, 16, 32, 64), (304, 304, 80, 64, 64), (640, 1024, 32, 128, 128))
    for m, n, k, bm, bn in of_two if {gated} else of_one:
        for along_m in (False, True):
            for along_k in (False, True):
                if {gated} and not along_k:
                    continue
                [d] = run(m, n, k, along_m, along_k, {gated})
                assert f"bm{{bm}}_bn{{bn}}" in d.kernel, d.kernel
                products = 2 if {gated} else 1
                wm, wn = map(int, re.search(r"_wm(\\d+)_wn(\\d+)", d.kernel).groups())
                simd_rows, simd_columns = bm // wm, bn // wn
                # Parts of a tile that lie outside of out are not multiplied.
                parts = -(-m // simd_rows) * -(-n // simd_columns)
                assert d.tensor_flops == products * 2 * parts * simd_rows * simd_columns * k
                assert d.matrix_flops == 0 and d.threadgroup_memory == 16
                # Each of two products of one a reads it; both weights are the same one here.
                assert d.device_read == products * 2 * k * (m * -(-n // simd_columns) + n * -(-m // simd_rows))
                assert d.device_read_unique == 2 * k * (m + n)
                assert d.device_written == 2 * m * n
    """)


def test_a_full_size_product_reads_what_its_tiles_need():
    """From L2, whose part simdgroups of a threadgroup share: m n k (1 / bm + 1 / bn) elements."""
    counted("""
    [d] = run(640, 1024, 512, False, True, False)
    from_l2 = 128 * (d.device_lines_ideal - d.device_lines_shared)
    assert from_l2 <= 1.05 * (2 * 640 * 1024 * 512 * (1 / 128 + 1 / 128) + d.device_written)
    # Lines are read whole; a store of 32 lanes of four elements has 32 bytes of each of 8 rows.
    assert 128 * d.device_lines <= 1.01 * d.device_read + 128 * 8 * 640 * 1024 / 128
    assert d.groups == 40
    """)


def test_gathered_rows_pass_through_threadgroup_memory_once():
    counted("""
    rows, k, n = 640, 128, 256
    x = torch.empty(rows, k, dtype=torch.float16, device="mps")
    w = torch.empty(1, k, n, dtype=torch.float16, device="mps")
    offsets = torch.tensor([rows], dtype=torch.int32).to("mps")
    indices = torch.arange(rows, dtype=torch.int32).flip(0).to("mps")
    with profile() as p:
        mpskernels.grouped_matmul(x, w, offsets, indices)
    [d] = p.dispatches
    assert "matmul_tensor_gathered_f16_bm64_bn64_wm2_wn2" in d.kernel
    tiles_m, tiles_n = rows // 64, n // 64
    assert d.threadgroup_memory == 64 * (64 * 2 + 16)
    assert d.tensor_flops == 2 * rows * n * k
    assert d.threadgroup_written == 2 * rows * k * tiles_n
    assert d.threadgroup_read == 2 * rows * k * tiles_n * 2  # by two columns of simdgroups
    assert d.bank_conflicts <= 1.1
    of_b = 2 * k * n * tiles_m * 2  # by two rows of simdgroups
    lookups = d.device_read - 2 * rows * k * tiles_n - of_b
    assert 0 < lookups <= 0.6 * 2 * rows * k * tiles_n  # 8 bytes of indices for each 16 of a, from L1
    assert d.device_written == 2 * rows * n
    """)
