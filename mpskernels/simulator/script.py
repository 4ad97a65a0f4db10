"""A Python script under `check()` or `profile()`: python -m mpskernels check | profile script.py"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path

import torch

from mpskernels.simulator import check, chips, enable, profile, roofline


def run(script: str, arguments: list[str]) -> int:
    """Runs a file as `python script arguments` would, with `mps` there for code that asks, and returns its status."""
    enable()
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name="__main__")
        torch.mps.synchronize()  # an error of a kernel is one of the script
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run_checked(script: str, arguments: list[str]) -> int:
    """Prints what the script's kernels do wrong. The script's status; 1 where that is 0 and there are findings."""
    with check(report_only=True) as report:
        status = run(script, arguments)
    sys.stdout.flush()
    for finding in report.findings:
        print(finding, end="\n\n")
    print(f"mpskernels check: {len(report.findings) or 'no'} finding{'s' * (len(report.findings) != 1)}")
    return status or int(bool(report.findings))


def run_profiled(
    script: str, arguments: list[str], *, names: list[str] | None, json: str | None, plot: str | None
) -> int:
    """Prints what the script's kernels cost on the chips of those names, writes `json` and draws `plot`.

    Returns the script's status; 2, without running it, where a name is no chip's, matplotlib is missing or a file
    cannot be written.
    """
    try:
        found = [chips.find(name) for name in names or [None]]
        if plot:
            roofline.require_matplotlib()
        for file in filter(None, (json, plot)):
            Path(file).touch()
    except (OSError, RuntimeError, ValueError) as error:
        print(f"mpskernels profile: {error}", file=sys.stderr)
        return 2
    with profile() as p:
        status = run(script, arguments)
    sys.stdout.flush()
    print("\n\n".join(p.table(chip) for chip in found))
    if json:
        Path(json).write_text(p.json(found))
    if plot:
        p.plot(plot, found)
    return status
