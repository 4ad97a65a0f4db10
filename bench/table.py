"""Runs the benchmarks and prints ours against stock torch. Arguments go to pytest; without any, the short set runs."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULT = HERE / ".results" / "latest.json"


def main() -> int:
    RESULT.parent.mkdir(exist_ok=True)
    options = ["-q", "-p", "no:xdist", "--benchmark-json", str(RESULT), "--benchmark-quiet"]
    options += sys.argv[1:] or ["-m", "not slow"]
    # OpenMP threads that spin while they wait would take the cores from whatever else runs, and each other's time.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if code := subprocess.run([sys.executable, "-m", "pytest", str(HERE), *options], env=environment).returncode:
        return code
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    benchmarks = json.loads(RESULT.read_text())["benchmarks"]
    for run in benchmarks:
        groups[run["group"]][run["extra_info"]["implementation"]] = run["stats"]["median"] * 1e3
    facts = benchmarks[0]["extra_info"]
    simulated = "simulated" in facts["time"]
    ours_in = "mpskernels (ms, simulated)" if simulated else "mpskernels (ms)"
    width = max(map(len, groups))
    print(f"\n{facts['device']}; {facts['time']}; medians; every result checked against fp64")
    print(f"{'op/dtype/shape':<{width}}  {ours_in:>26}  {'stock torch (ms)':>16}  {'torch / ours':>12}")
    for group, times in groups.items():
        ours, torch = times.get("mpskernels", float("nan")), times.get("torch", float("nan"))
        print(f"{group:<{width}}  {ours:>26.3f}  {torch:>16.3f}  {torch / ours:>12.3f}")
    if simulated:
        print(
            "Stock torch on the simulated device is its CPU fallback: native CPU code against a simulation of a GPU. "
            "These ratios are no prediction for a Mac."
        )
    print(f"Details: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
