"""The roofline picture: what a chip allows at each intensity, and where kernels stand below it."""

from __future__ import annotations

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


def require_matplotlib() -> None:
    """Raises:
    RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RuntimeError("a roofline picture needs matplotlib: pip install matplotlib") from None


def draw(dispatches: Sequence[Dispatch], path: str | Path, chips: Sequence[Chip]) -> None:
    """Draws a panel for each chip into the file `path`, whose suffix names the format.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0 * len(chips), 5.5), layout="constrained")
    kinds = [dispatch for dispatch in dict.fromkeys(dispatches) if dispatch.flops and dispatch.device_bytes_unique]
    at = [dispatch.flops / dispatch.device_bytes_unique for dispatch in kinds]
    low, high = min([0.1, *(x / 2 for x in at)]), max([1000.0, *(2 * x for x in at)])
    for axes, chip in zip(figure.subplots(1, len(chips), squeeze=False)[0], chips, strict=True):
        roofs = {"ALU": chip.alu_tflops, "simdgroup_matrix": chip.matrix_tflops, "matmul2d": chip.tensor_tflops}
        for name, peak in roofs.items():
            if peak is not None:
                ridge = 1e3 * peak / chip.stream_gb_per_s
                axes.plot([low, ridge, high], [low * chip.stream_gb_per_s / 1e3, peak, peak], color="0.6", lw=1)
                side = "top" if name == "simdgroup_matrix" else "bottom"  # it lies close below the ALUs' peak
                axes.annotate(f"{name} {peak:.3g} TFLOP/s", (high, peak), ha="right", va=side, fontsize=8)
        axes.annotate(f"DRAM {chip.stream_gb_per_s:.0f} GB/s", (low, low * chip.stream_gb_per_s / 1e3), fontsize=8)
        for number, (dispatch, x) in enumerate(zip(kinds, at, strict=True), 1):
            found = model.predict(dispatch, chip)
            y = dispatch.flops / found.seconds / 1e12
            label = f"{number} {dispatch.kernel}, {found.binds} binds"
            axes.scatter([x], [y], color=COLOURS[found.binds], s=24, zorder=3, label=label)
            axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="FLOP for each distinct byte", ylabel="TFLOP/s, predicted")
        axes.set_title(f"{chip.name}, {chip.gpu_cores} cores: a model, nothing measured")
        if kinds:
            axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)
