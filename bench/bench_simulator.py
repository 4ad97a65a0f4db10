"""How fast the software Metal device itself is, plain, checking and profiling, and beside Oclgrind.

Exits non-zero where a goal is missed. These are CPU times, not a GPU's.
"""

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

import mpskernels
from mpskernels import _C, simulator

SGEMM_FLOOR = 10.0  # GFLOP/s, fp32, 64x64x16 tiles
NORM_FLOOR = 100.0  # million elements/s
CHECK_CEILING, PROFILE_CEILING = 8.0, 5.0  # times as slow as a plain run
OCLGRIND_FLOOR = 100.0  # times as slow as check()
OCLGRIND = Path(__file__).parent / "oclgrind"


def seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """The best wall time after one call to warm up: what the simulator can do, whatever else the machine is doing."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        torch.mps.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def seconds_in(mode: Callable[[], object], call: Callable[[], object]) -> float:
    """The same inside `with mode():`, entered once, which finds nothing to complain of."""
    with mode():
        return seconds(call)


def kernels(op: str) -> str:
    return ", ".join(label.partition("?")[0] for label in _C.launches()[op])


class Table:
    """Prints a line for each number and counts those on the wrong side of their goal."""

    def __init__(self) -> None:
        self.missed = 0

    def line(
        self, what: str, value: float, unit: str, *, floor: float = 0.0, ceiling: float = math.inf, note: str = ""
    ) -> None:
        missed = not floor <= value <= ceiling
        self.missed += missed
        goal = f"floor {floor:g}" if floor else f"ceiling {ceiling:g}" if ceiling < math.inf else ""
        verdict = f"{goal}: {'FAIL' if missed else 'pass'}" if goal else ""
        print(f"{what:<40} {value:>10.4g} {unit:<13} {verdict:<17} {note}".rstrip(), flush=True)


def oclgrind_seconds(kernel: str, global_size: str, local_size: str, arguments: list[str]) -> tuple[float, str]:
    """Wall time of a kernel in Oclgrind with race detection, and what it printed. Arguments are Oclgrind's own, in the
    form of its simulator files."""
    with tempfile.NamedTemporaryFile("w", suffix=".sim") as file:
        file.write("\n".join([str(OCLGRIND / f"{kernel}.cl"), kernel, global_size, local_size, *arguments, ""]))
        file.flush()
        start = time.perf_counter()
        done = subprocess.run(
            ["oclgrind-kernel", "--data-races", file.name], capture_output=True, text=True, check=True
        )
        elapsed = time.perf_counter() - start
    if done.stderr:
        raise RuntimeError(f"Oclgrind complains of {kernel}.cl: {done.stderr}")
    return elapsed, done.stdout


def oclgrind_sgemm(n: int, k: int, dump: str = "") -> tuple[float, str]:
    operand, tiles = f"size={4 * n * k} float", n // 64
    arguments = [f"<{operand} fill=0.5>", f"<{operand} fill=0.25>", f"<size={4 * n * n} float fill=0 {dump}>"]
    arguments += ["<size=4 int>", str(n), "<size=4 int>", str(k)]
    return oclgrind_seconds("sgemm", f"{128 * tiles} {tiles} 1", "128 1 1", arguments)


def oclgrind_rms_norm(rows: int, columns: int, dump: str = "") -> tuple[float, str]:
    matrix = f"size={4 * rows * columns} float"
    arguments = [f"<{matrix} fill=2>", f"<size={4 * columns} float fill=3>", f"<{matrix} fill=0 {dump}>"]
    arguments += ["<size=4 int>", str(columns), "<size=4 float>", "0.000001"]
    return oclgrind_seconds("rms_norm", f"{256 * rows} 1 1", "256 1 1", arguments)


def compare_with_oclgrind(table: Table) -> None:
    """check() against Oclgrind's race detection: equivalent kernels, the same sizes, CPU time from start to end less
    that of one tile or row, so that neither pays for starting and compiling."""
    if shutil.which("oclgrind-kernel") is None:
        print("Oclgrind is not installed, so nothing is compared with it: apt-get install oclgrind")
        return
    checks = (
        ("sgemm", oclgrind_sgemm(64, 64, "dump")[1], 64 / 8),
        ("rms_norm", oclgrind_rms_norm(2, 1024, "dump")[1], 3),
    )
    for kernel, text, expected in checks:
        found = {float(line.split("=")[1]) for line in text.splitlines() if "=" in line}
        if not found or any(abs(number - expected) > 1e-4 for number in found):
            raise RuntimeError(f"{kernel}.cl in Oclgrind gives {sorted(found)[:4]}, not {expected}")

    n, k = 512, 64  # the smallest square of 64x64 tiles that is not given to smaller ones
    a, b = torch.randn(n, k).to("mps"), torch.randn(k, n).to("mps")
    _C.reset_launches()
    ours = seconds_in(simulator.check, lambda: mpskernels.matmul(a, b))
    theirs = oclgrind_sgemm(n, k)[0] - oclgrind_sgemm(64, 16)[0]
    note = f"{theirs:.2f} s and {ours * 1e3:.2f} ms, {kernels('matmul')}"
    table.line(f"Oclgrind / check, sgemm {n}x{k}x{n}", theirs / ours, "times", floor=OCLGRIND_FLOOR, note=note)
    rows, columns = 64, 4096
    x, weight = torch.randn(rows, columns).to("mps"), torch.ones(columns).to("mps")
    ours = seconds_in(simulator.check, lambda: mpskernels.rms_norm(x, weight, 1e-6))
    theirs = oclgrind_rms_norm(rows, columns)[0] - oclgrind_rms_norm(1, columns)[0]
    note = f"{theirs:.2f} s and {ours * 1e3:.2f} ms"
    table.line(f"Oclgrind / check, rms_norm {rows}x{columns}", theirs / ours, "times", floor=OCLGRIND_FLOOR, note=note)


def main() -> int:
    simulator.enable()
    device, threads = mpskernels.info().device, simulator.chip().threads
    print(f"{device} in software on {threads} threads; CPU times, not a GPU's; the best of several")
    table = Table()

    def modes(what: str, call: Callable[[], object]) -> None:
        plain = seconds_in(nullcontext, call)
        for mode, ceiling in ((simulator.check, CHECK_CEILING), (simulator.profile, PROFILE_CEILING)):
            name = f"{what}, {mode.__name__} / plain"
            table.line(name, seconds_in(mode, call) / plain, "times", ceiling=ceiling)

    for n in (512, 1024):
        a, b = torch.randn(n, n).to("mps"), torch.randn(n, n).to("mps")
        _C.reset_launches()
        elapsed = seconds(lambda a=a, b=b: mpskernels.matmul(a, b))
        rate = 2 * n**3 / elapsed / 1e9
        table.line(f"sgemm {n}", rate, "GFLOP/s", floor=SGEMM_FLOOR, note=kernels("matmul"))
        if n == 512:
            modes(f"sgemm {n}", lambda a=a, b=b: mpskernels.matmul(a, b))
    x, weight = torch.randn(4096, 4096).to("mps"), torch.ones(4096).to("mps")
    _C.reset_launches()
    elapsed = seconds(lambda: mpskernels.rms_norm(x, weight, 1e-6))
    rate = x.numel() / elapsed / 1e6
    table.line("rms_norm 4096x4096", rate, "M elements/s", floor=NORM_FLOOR, note=kernels("rms_norm"))
    modes("rms_norm 4096x4096", lambda: mpskernels.rms_norm(x, weight, 1e-6))
    small, ones = torch.randn(1, 64).to("mps"), torch.ones(64).to("mps")
    elapsed = seconds(lambda: mpskernels.rms_norm(small, ones, 1e-6), rounds=101)
    table.line("op call, one threadgroup, finished", elapsed * 1e6, "us")
    switches = 1_000_000
    table.line("fiber switch", simulator._simulator.bench_fiber_switch(switches) / switches * 1e9, "ns")
    compare_with_oclgrind(table)
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
