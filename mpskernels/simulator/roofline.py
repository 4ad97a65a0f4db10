"""The roofline picture: what a chip allows at each intensity, and where kernels stand below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpskernels.simulator import model
from mpskernels.simulator.chips import Chip

if TYPE_CHECKING:
    from mpskernels.simulator.profiler import Dispatch

COLOURS = {
    "matrix": "tab:blue",
    "alu": "tab:cyan",
    "dram": "tab:green",
    "cache": "tab:olive",
    "threadgroup": "tab:orange",
    "launch": "tab:gray",
}  # of what binds
NAMED = 16


def require_matplotlib() -> None:
    """Raises:
    RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RuntimeError("a roofline picture needs matplotlib: pip install matplotlib") from None


def draw(dispatches: Sequence[Dispatch], path: str | Path, chips: Sequence[Chip]) -> None:
    """Draws a panel for each chip into the file `path`, whose suffix names the format. Of the kinds of dispatches, the
    `NAMED` that take the most time are numbered and named below.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    kinds = Counter(d for d in dispatches if d.flops and d.device_bytes_unique)
    intensity = {d: d.flops / d.device_bytes_unique for d in kinds}
    low, high = min([0.1, *(x / 2 for x in intensity.values())]), max([5000.0, *(2 * x for x in intensity.values())])
    named = min(len(kinds), NAMED)
    figure = Figure(figsize=(7.0 * len(chips), 5.0 + 0.15 * named), layout="constrained")
    for axes, chip in zip(figure.subplots(1, len(chips), squeeze=False)[0], chips, strict=True):
        slope = chip.stream_gb_per_s / 1e3
        roofs = {"ALU": chip.alu_tflops, "simdgroup_matrix": chip.matrix_tflops, "matmul2d": chip.tensor_tflops}
        for name, peak in roofs.items():
            if peak is not None:
                axes.plot([low, peak / slope, high], [low * slope, peak, peak], color="0.6", lw=1)
                side = "top" if name == "simdgroup_matrix" else "bottom"  # it lies close below the ALUs' peak
                axes.annotate(f"{name} {peak:.3g} TFLOP/s", (high, peak), ha="right", va=side, fontsize=8)
        axes.annotate(f"  DRAM {chip.stream_gb_per_s:.0f} GB/s", (low, low * slope), fontsize=8)
        found = {dispatch: model.predict(dispatch, chip) for dispatch in kinds}
        by_time = sorted(kinds, key=lambda d: -kinds[d] * found[d].seconds)
        for number, dispatch in enumerate(by_time, 1):
            x, y = intensity[dispatch], dispatch.flops / found[dispatch].seconds / 1e12
            binds = found[dispatch].binds
            label = f"{number}  {dispatch.name}, {binds} binds" if number <= named else None
            axes.scatter([x], [y], color=COLOURS[binds], s=24, zorder=3, label=label)
            if label:
                axes.annotate(str(number), (x, y), xytext=(3, -9), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="FLOP for each distinct byte", ylabel="TFLOP/s, predicted")
        axes.set_title(f"{chip.name}, {chip.gpu_cores} cores: a model, nothing measured")
        if named:
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.0, -0.12), frameon=False)
    figure.savefig(path, dpi=120)
