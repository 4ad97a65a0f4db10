"""The matmul kernels that only Max chips choose: in a process of its own, as a process simulates one chip."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = """
import itertools, math, sys
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
from cases import DTYPE_IDS, random
import test_matmul, test_matmul_linear

def launched(call, op="matmul"):
    return [label.split("?") for label in test_matmul.launched(call, op)]

# Whole tiles and vectors; tiles in part at every edge, element by element; a batch.
SIZES = {(1, 640, 512, 48): True, (1, 639, 509, 33): False, (160, 63, 61, 40): False}
for dtype, b_along_k in itertools.product((torch.float16, torch.bfloat16), (False, True)):
    kernel = f"matmul_tile_{DTYPE_IDS[dtype]}_bm64_bn64_bk16_wm2_wn2_wk1"
    for ((batch, m, n, k), vectors), a_along_m in itertools.product(SIZES.items(), (False, True)):
        a = random(batch, k, m, dtype=dtype).mT if a_along_m else random(batch, m, k, dtype=dtype)
        b = random(batch, n, k, dtype=dtype, seed=1).mT if b_along_k else random(batch, k, n, dtype=dtype, seed=1)
        [(found, constants)] = launched(lambda: test_matmul.check(a, b))
        assert found == kernel, (found, batch, m, n, k, a_along_m, b_along_k)
        assert f"a_along_m={a_along_m:d},b_along_k={b_along_k:d}" in constants, constants
        assert not vectors or "a_vectors=1,b_vectors=1" in constants, constants
    x, weight = random(639, 40, dtype=dtype), random(509, 40, dtype=dtype, seed=1) / math.sqrt(40)
    weight = weight if b_along_k else weight.T.contiguous().T
    bias, residual = random(509, dtype=dtype, seed=2), random(639, 509, dtype=dtype, seed=3)
    options = {"activation": "gelu", "residual": residual}
    [(found, _)] = launched(lambda: test_matmul_linear.check_linear(x, weight, bias, **options), "linear")
    assert found == kernel, found
"""


def test_tiles_of_64x64_by_four_simdgroups_match_the_reference():
    """In f16 and bf16, which chips of 21 to 59 cores take them for."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPSK_SIMULATE": "m4max"}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
