"""The house rules that a program can check: one name for one thing in all places, and who may know whom."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpskernels import _C

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = sorted(path.name.removesuffix("_variants.h") for path in (ROOT / "metal").glob("*_variants.h"))
ABOUT_FILES = {"test_layout.py", "test_macos.py", "test_package.py"}  # what is in the package, not what it does
# Families that may have more than 64 variants, each with its reason.
BUDGET = {"matmul": 96}  # eight tiles, and kernels for few rows, for gates, for packs and for the backward pass


def variants(family: str) -> int:
    """Rows of the family's X-macro lists."""
    return len(
        re.findall(r"(?:^\s*|VARIANTS\(X\)\s+)X\(", (ROOT / "metal" / f"{family}_variants.h").read_text(), re.MULTILINE)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "place",
    [
        "metal/{}.metal",
        "metal/{}_params.h",
        "metal/{}_variants.h",
        "csrc/{}.mm",
        "csrc/{}_select.h",
        "mpskernels/ops/{}.py",
        "tests/test_{}.py",
        "bench/bench_{}.py",
    ],
)
def test_family_has_its_file(family, place):
    assert (ROOT / place.format(family)).exists()


def test_no_file_is_without_a_family():
    files = [*(ROOT / "metal").glob("*.*"), *(ROOT / "csrc").glob("*.*"), *(ROOT / "mpskernels/ops").glob("*.py")]
    strays = [path for path in files if path.stem.split("_")[0] not in FAMILIES]
    assert {path.relative_to(ROOT).as_posix() for path in strays} <= {"csrc/bindings.mm", "mpskernels/ops/__init__.py"}


def test_benchmarks_of_every_family_are_collected():
    """Whole: a file that pytest cannot import, or finds nothing in, would leave its family unmeasured."""
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = set(re.findall(r"^bench/(bench_\w+\.py::bench_\w+)", done.stdout, re.MULTILINE))
    assert {name.split("::")[0] for name in found} >= {f"bench_{family}.py" for family in FAMILIES}
    kinds = ["matmul", "batched_matmul", "linear", "gated_linear", "grouped_matmul", "linear_backward"]
    assert found >= {f"bench_matmul.py::bench_{kind}" for kind in kinds}


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_stay_within_budget(family):
    assert 0 < variants(family) <= BUDGET.get(family, 64)


def test_every_function_of_the_metallib_is_a_listed_variant():
    names = [name for name in _C.function_names() if name != "tensor_units_probe"]
    assert len(names) == len(set(names)) == sum(map(variants, FAMILIES))


def test_readme_table_is_the_registered_ops():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mpsk::")]
    registered = {str(torch._C._get_schema(*f"{name}.".split(".")[:2])) for name in names}
    rows = re.findall(r"^\| `(mpsk::[^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == registered


def test_tests_of_the_ops_know_no_simulator():
    word = re.compile(r"\b_?simulator\b(?!/)")
    files = [path for path in (ROOT / "tests").glob("test_*.py") if path.name not in ABOUT_FILES]
    assert files
    assert [path.name for path in files if word.search(path.read_text())] == []


def test_kernels_and_glue_know_no_platform():
    word = re.compile(r"__APPLE__|__linux__|TARGET_OS|simulat|GNUSTEP|sys\.platform", re.IGNORECASE)
    files = [path for place in ("metal", "csrc", "mpskernels/ops") for path in (ROOT / place).rglob("*.*")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path.suffix in {".metal", ".h", ".mm", ".cpp", ".py"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line)
    ]
    assert files
    assert found == []
