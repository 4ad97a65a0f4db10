"""The suite's option --math-mode changes the kernels that are tested."""

import subprocess
import sys
from pathlib import Path

import pytest

import mpskernels
from mpskernels import _C

ROOT = Path(__file__).resolve().parents[1]
SAFE = ROOT / "build" / "mpskernels-safe.metallib"


def run_safe(*tests: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--math-mode=safe", *tests]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_metallib_is_that_of_the_math_mode(pytestconfig):
    safe = pytestconfig.getoption("math_mode") == "safe"
    assert (_C.metallib_path() == str(SAFE)) == safe


@pytest.mark.skipif(not SAFE.exists(), reason="built without a Metal compiler")
def test_safe_math_is_another_build_of_the_same_kernels(pytestconfig):
    result = run_safe(f"{__file__}::{test_metallib_is_that_of_the_math_mode.__name__}")
    assert "1 passed" in result.stdout, result.stdout
    fast = Path(mpskernels.__file__).parent / "mpskernels.metallib"
    assert fast.read_bytes() != SAFE.read_bytes()
    set_now, functions = _C.metallib_path(), {}
    for path in (fast, SAFE):
        _C.set_metallib(str(path))
        functions[path] = sorted(_C.function_names())
    _C.set_metallib(set_now)
    assert functions[fast] == functions[SAFE]
