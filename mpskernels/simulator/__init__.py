"""The software Metal device: runs Metal kernels, and the code that launches them, on a machine without an Apple GPU.

Importing this package puts it behind torch's device `mps`. `MPSK_SIMULATE` chooses the chip it stands for (default m4);
`MPSK_CHECK=1` checks every kernel that the process runs.
"""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import dataclass

if sys.platform == "darwin":  # the one module of the simulator that is installed there
    raise ImportError("mpskernels.simulator is for Linux: on a Mac, mpskernels runs on the GPU itself")

import torch  # noqa: F401  (its libraries must be there before ours)

from mpskernels.simulator import _simulator
from mpskernels.simulator.checker import Access, CheckError, Finding, Report, check, check_process, compare_schedules
from mpskernels.simulator.compiler import CompileError
from mpskernels.simulator.profiler import Dispatch, Profile, profile
from mpskernels.simulator.shader import MetalKernel, ShaderLibrary, compile_shader, load_metallib
from mpskernels.simulator.torch_face import enable, install

__all__ = [
    "Access",
    "CheckError",
    "Chip",
    "CompileError",
    "Dispatch",
    "Finding",
    "MetalKernel",
    "Profile",
    "Report",
    "ShaderLibrary",
    "check",
    "chip",
    "compare_schedules",
    "compile_shader",
    "enable",
    "load_metallib",
    "profile",
]


@dataclass(frozen=True)
class Chip:
    """What the simulated device answers about itself."""

    chip: str  # as MPSK_SIMULATE spells it
    name: str
    architecture: str
    gpu_family: str
    gpu_cores: int
    memory_gib: int
    bandwidth_gb_per_s: float
    max_buffer_length: int
    recommended_max_working_set_size: int
    threads: int  # of this machine that execute kernels


def chip() -> Chip:
    """The chip that the device stands for.

    Raises:
        RuntimeError: MPSK_SIMULATE names no chip, or MPSK_THREADS is no positive number.
    """
    return Chip(**_simulator.facts())


chip()  # a wrong MPSK_SIMULATE or MPSK_THREADS is refused here, before any work
install()
atexit.register(_simulator.shut_down)
if os.environ.get("MPSK_CHECK", "0") not in ("", "0"):
    check_process()
