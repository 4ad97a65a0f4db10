"""How fast the software Metal device itself is; exits non-zero below a floor. These are CPU times, not a GPU's."""

import sys
import time

import torch

import mpskernels
from mpskernels import _C, simulator

SGEMM_FLOOR = 10.0  # GFLOP/s, fp32, 64x64x16 tiles
NORM_FLOOR = 100.0  # million elements/s


def seconds(call, rounds: int = 5) -> float:
    """The best wall time after one call to warm up: what the simulator can do, whatever else the machine is doing."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        torch.mps.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def kernels(op: str) -> str:
    return ", ".join(_C.launches()[op])


def main() -> int:
    simulator.enable()
    device, threads = mpskernels.info().device, simulator.chip().threads
    print(f"{device} in software on {threads} threads; CPU times, not a GPU's; the best of several")
    missed = 0

    def report(what: str, value: float, unit: str, floor: float | None = None, note: str = "") -> None:
        nonlocal missed
        verdict = ""
        if floor is not None:
            missed += value < floor
            verdict = f"floor {floor:g}: {'FAIL' if value < floor else 'pass'}"
        print(f"{what:<34} {value:>10.4g} {unit:<13} {verdict:<16} {note}".rstrip())

    for n in (512, 1024):
        a, b = torch.randn(n, n).to("mps"), torch.randn(n, n).to("mps")
        _C.reset_launches()
        elapsed = seconds(lambda a=a, b=b: mpskernels.matmul(a, b))
        report(f"sgemm {n}", 2 * n**3 / elapsed / 1e9, "GFLOP/s", SGEMM_FLOOR, kernels("matmul"))
    x, weight = torch.randn(4096, 4096).to("mps"), torch.ones(4096).to("mps")
    _C.reset_launches()
    elapsed = seconds(lambda: mpskernels.rms_norm(x, weight, 1e-6))
    report("rms_norm 4096x4096", x.numel() / elapsed / 1e6, "M elements/s", NORM_FLOOR, kernels("rms_norm"))
    small, ones = torch.randn(1, 64).to("mps"), torch.ones(64).to("mps")
    elapsed = seconds(lambda: mpskernels.rms_norm(small, ones, 1e-6), rounds=101)
    report("op call, one threadgroup, finished", elapsed * 1e6, "us")
    switches = 1_000_000
    report("fiber switch", simulator._simulator.bench_fiber_switch(switches) / switches * 1e9, "ns")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
