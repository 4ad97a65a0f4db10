import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # cases.py, for the tests of every family

import cases
import torch

import mpskernels  # its device must exist before the tests make tensors
from mpskernels import _C

SAFE_METALLIB = Path(__file__).resolve().parents[1] / "build" / "mpskernels-safe.metallib"


def pytest_addoption(parser):
    parser.addoption(
        "--math-mode", choices=["fast", "safe"], default="fast", help="the math mode of the kernels that are tested"
    )


def pytest_configure(config):
    if config.getoption("math_mode") == "fast":
        return  # as installed
    built = json.loads((Path(mpskernels.__file__).parent / "build.json").read_text())
    if built["metallib"] is None:
        pytest.exit("no Metal compiler here, and so no kernels in safe math: nothing is tested", returncode=0)
    if not SAFE_METALLIB.exists():
        raise pytest.UsageError(f"no {SAFE_METALLIB}: build with make build")
    _C.set_metallib(str(SAFE_METALLIB))


torch.set_num_threads(1)  # the tests run beside each other

pytest_plugins = ["mpskernels.pytest_plugin"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Hands what assert_accurate saw to the summary, which may be made in another process."""
    report = yield
    if call.when == "call":
        report.user_properties += [("accuracy", (item.originalname, *entry)) for entry in cases.take_accuracy()]
    return report


def pytest_terminal_summary(terminalreporter):
    """The worst error of each test in each dtype."""
    worst = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, (test, dtype, error, allowed) in getattr(report, "user_properties", []):
                if key == "accuracy":
                    worst[test, dtype] = max(worst.get((test, dtype), (0.0, 0.0)), (error, allowed))
    if worst:
        terminalreporter.section("worst errors, in eps of the dtype")
        for (test, dtype), (error, allowed) in sorted(worst.items()):
            terminalreporter.line(f"{test:<50} {dtype:<5} {error:8.3f} of {allowed:.3f} allowed")
