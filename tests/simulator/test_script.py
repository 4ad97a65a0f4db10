"""python -m mpskernels check | profile, in processes of their own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mpskernels import __main__ as program

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
    import sys
    import torch

    assert __name__ == "__main__"
    print(sys.argv, torch.backends.mps.is_available())
    source = '''
    #include <metal_stdlib>
    using namespace metal;
    kernel void shift(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                      uint t [[thread_position_in_grid]]) {
      out[t] = x[t + 1] * 2.0f;
    }
    '''
    shift = torch.mps.compile_shader(source).shift
    x = torch.ones(int(sys.argv[1]), device="mps")
    out = torch.zeros(256, device="mps")
    shift(x, out, threads=256, group_size=64)
    torch.mps.synchronize()
    if sys.argv[2:] == ["--json", "here"]:
        sys.exit("left early")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def run(*arguments, cwd=None) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPSK_SIMULATE": "m4"}
    command = [sys.executable, "-m", "mpskernels", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_check_is_clean(script):
    done = run("check", script, 257)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"['{script}', '257'] True"
    assert done.stdout.splitlines()[-1] == "mpskernels check: no findings"


def test_check_finds_and_exits_with_1(script):
    done = run("check", script, 256)
    assert done.returncode == 1
    assert "bounds" in done.stdout
    assert "shift" in done.stdout
    assert done.stdout.splitlines()[-1] == "mpskernels check: 1 finding"


def test_the_status_of_a_script_that_fails_is_kept(script):
    done = run("check", script, "many")
    assert done.returncode == 1
    assert "ValueError: invalid literal for int()" in done.stderr
    done = run("check", script, 257, "--", "--json", "here")
    assert done.returncode == 1
    assert done.stderr == "left early\n"
    assert done.stdout.splitlines()[-1] == "mpskernels check: no findings"


def test_profile_writes_table_json_and_picture(script, tmp_path):
    files = ["--json", tmp_path / "p.json", "--plot", tmp_path / "p.png"]
    done = run("profile", script, 257, "--chip", "M4 Max", "--chip", "m1", *files)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"['{script}', '257'] True"
    assert (
        [line for line in lines if line.startswith("1 dispatches, ")][1].split(" on ")[1].startswith("M1 with 8 cores")
    )
    assert sum(line.startswith("shift ") for line in lines) == 2
    [dispatch] = json.loads((tmp_path / "p.json").read_text())["dispatches"]
    assert (dispatch["threads"], dispatch["f32_flops"], dispatch["device_written"]) == (256, 256, 1024)
    assert set(dispatch["predicted"]) == {"M4 Max", "M1"}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_profile_is_of_the_simulated_chip_by_default(script):
    done = run("profile", script, 257)
    assert " on M4 with 10 cores: predicted from counts, not measured" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--chip", "M9"], "mpskernels profile: no chip 'M9'; there are: M1, "),
        (["--json", "nowhere/p.json"], "mpskernels profile: [Errno 2] No such file or directory: 'nowhere/p.json'"),
    ],
    ids=["chip", "file"],
)
def test_profile_refuses_before_it_runs(script, tmp_path, options, says):
    done = run("profile", script, 257, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stdout == ""


def test_a_script_that_is_not_there(tmp_path):
    done = run("check", tmp_path / "none.py")
    assert done.returncode == 2
    assert "there is no file" in done.stderr
    assert run("info", "--nonsense").returncode == 2


@pytest.mark.parametrize("command", ["check", "profile"])
def test_on_a_mac_they_say_what_they_need(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["mpskernels", command, __file__])
    with pytest.raises(SystemExit) as left:
        program.main()
    assert left.value.code == 2
    assert "needs the software Metal device" in capsys.readouterr().err
