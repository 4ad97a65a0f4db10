"""Hand-written Metal kernels for PyTorch on Apple GPUs.

    import torch, mpskernels
    y = mpskernels.matmul(a, b)          # or torch.ops.mpsk.matmul(a, b); tensors on device mps

On a machine without Metal the same kernels and the same glue run on a software Metal device, which importing this
package puts behind torch's `mps` device; see `mpskernels.simulator`.
"""

import json
import os
import sys
from pathlib import Path

import torch

_HERE = Path(__file__).resolve().parent


def _load() -> None:
    """Loads the native parts, each missing or foreign one with a sentence that says what to do."""
    try:
        built = json.loads((_HERE / "build.json").read_text())
    except FileNotFoundError:
        raise ImportError("mpskernels is not built here; build it with: make build (or pip install .)") from None
    found = ".".join(torch.__version__.split(".")[:2])
    if built["torch"] != found:
        raise ImportError(
            f"mpskernels was built against torch {built['torch']} and found torch {found}, of another C++ interface; "
            f"install mpskernels for torch {found}, or rebuild it with: make build (or pip install "
            "--no-build-isolation .)"
        )
    if sys.platform != "darwin":
        from mpskernels import simulator  # noqa: F401  (Metal and torch's mps device, which the glue needs)
    from mpskernels import _C

    _C.set_metallib(str(_HERE / ("mpskernels.metallib" if built["metallib"] else "metal")))
    _C.set_cache_folder(_cache_folder())


def _cache_folder() -> str:
    """The user's folder for what can be made again, as the system has it; empty where there is no home."""
    try:
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return ""
    return str(base / "mpskernels")


_load()

from mpskernels.info import Info, info  # noqa: E402
from mpskernels.ops.activation import geglu, reglu, swiglu  # noqa: E402
from mpskernels.ops.attention import attention  # noqa: E402
from mpskernels.ops.loss import cross_entropy, cross_entropy_and_gradient, linear_cross_entropy  # noqa: E402
from mpskernels.ops.matmul import gated_linear, grouped_matmul, linear, matmul  # noqa: E402
from mpskernels.ops.norm import (  # noqa: E402
    add_layer_norm,
    add_rms_norm,
    gated_rms_norm,
    group_norm,
    layer_norm,
    modulated_norm,
    rms_norm,
)
from mpskernels.ops.rope import qk_norm_rope, rope  # noqa: E402
from mpskernels.ops.softmax import log_softmax, softmax  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "Info",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "cross_entropy_and_gradient",
    "gated_linear",
    "gated_rms_norm",
    "geglu",
    "group_norm",
    "grouped_matmul",
    "info",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "matmul",
    "modulated_norm",
    "qk_norm_rope",
    "reglu",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
]
