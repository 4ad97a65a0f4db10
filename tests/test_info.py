import json
import re
import subprocess
import sys
from pathlib import Path

import torch

import mpskernels
from mpskernels import _C


def test_info_describes_the_installation():
    info = mpskernels.info()
    assert info.torch == torch.__version__
    assert info.device.startswith("Apple ")  # M4; of a virtual machine, Paravirtual device
    assert 7 <= info.gpu_family <= 10
    assert info.simulated == (sys.platform != "darwin")
    assert Path(info.metallib).name in {"mpskernels.metallib", "metal"}  # metal: built without a Metal compiler
    assert info.functions == len(_C.function_names()) > 0
    assert (info.matrix_units == "used") == (not _C.tensor_units_problem())
    if info.gpu_family < 10:
        assert info.matrix_units == f"not used: a GPU of Apple family {info.gpu_family} has none"


def test_info_counts_launches_per_op_and_pipeline():
    x, weight = torch.randn(2, 64).to("mps"), torch.ones(64).to("mps")
    mpskernels.rms_norm(x, weight, 1e-6)
    before = mpskernels.info()
    for _ in range(3):
        mpskernels.rms_norm(x, weight, 1e-6)
    after = mpskernels.info()
    moved = {
        pipeline: count - before.launches["rms_norm"].get(pipeline, 0)
        for pipeline, count in after.launches["rms_norm"].items()
        if count != before.launches["rms_norm"].get(pipeline, 0)
    }
    assert list(moved.values()) == [3]
    [pipeline] = moved
    assert pipeline in after.pipelines
    assert after.pipelines == before.pipelines  # the second call of an op creates nothing
    name, count = pipeline.partition("?")[0], after.launches["rms_norm"][pipeline]
    [line, *_] = [
        text for text in str(after).splitlines() if re.match(rf"launches +rms_norm +{name}\b.* x{count}$", text)
    ]
    assert "=0" not in line  # a kernel may have many constants


def test_info_prints_and_speaks_json():
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "mpskernels", "info", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert mpskernels.info().device in run()
    found = json.loads(run("--json"))
    assert found["functions"] == mpskernels.info().functions
    assert found["launches"] == {}
