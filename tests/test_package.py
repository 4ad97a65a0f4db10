"""The package as installed: what it says where a part is missing or foreign, and what a wheel carries."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mpskernels

ROOT = Path(__file__).resolve().parents[1]


def python_in(folder: Path, code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def unbuilt(tmp_path):
    """A copy of the Python sources without anything native."""
    shutil.copytree(
        ROOT / "mpskernels",
        tmp_path / "mpskernels",
        ignore=shutil.ignore_patterns("*.so", "*.metallib", "build.json", "__pycache__"),
    )
    return tmp_path


def last_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_unbuilt_package_says_how_to_build(unbuilt):
    assert last_line(python_in(unbuilt, "import mpskernels")) == (
        "ImportError: mpskernels is not built here; build it with: make build (or pip install .)"
    )


def test_other_torch_series_is_refused(unbuilt):
    (unbuilt / "mpskernels/build.json").write_text(json.dumps({"torch": "2.1", "metallib": ""}))
    message = last_line(python_in(unbuilt, "import mpskernels"))
    assert message.startswith("ImportError: mpskernels was built against torch 2.1 and found torch 2.")


def test_package_without_a_metallib_compiles_its_sources(tmp_path):
    package = shutil.copytree(ROOT / "mpskernels", tmp_path / "mpskernels", ignore=shutil.ignore_patterns("*.metallib"))
    built = json.loads((package / "build.json").read_text())
    (package / "build.json").write_text(json.dumps({**built, "metallib": None}))
    code = (
        "import torch, mpskernels; from mpskernels import _C; x = torch.ones(2, 64, device='mps');"
        "print(mpskernels.rms_norm(x, None, 0.0).sum().item(), _C.metallib_path()); print(mpskernels.info())"
    )
    result = python_in(tmp_path, code)
    assert result.stdout.startswith(f"128.0 {package / 'metal'}\n"), result.stderr
    assert "functions, built by Metal itself, from source at first use" in result.stdout


def test_import_leaves_transformers_alone():
    code = "import sys, mpskernels; print('transformers' in sys.modules)"
    assert python_in(ROOT, code).stdout.strip() == "False"


def test_public_names_are_callable():
    assert all(callable(getattr(mpskernels, name)) for name in mpskernels.__all__)


@pytest.mark.slow
def test_wheel_runs_outside_the_checkout(tmp_path):
    options = ["--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *options, str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import torch, mpskernels; x = torch.ones(2, 64, device='mps');"
        "print(mpskernels.__file__, mpskernels.rms_norm(x, None, 0.0).sum().item())"
    )
    result = python_in(tmp_path / "site", code)
    assert result.stdout.split() == [str(tmp_path / "site/mpskernels/__init__.py"), "128.0"], result.stderr
