"""What this installation is and what it has done: the device, the metallib, and which op ran which kernel how often."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import torch

from mpskernels import _C


@dataclasses.dataclass(frozen=True)
class Cache:
    """Where pipelines are kept that were compiled from source, and what it gave since the process began."""

    folder: str  # empty: none is kept
    usable: bool  # it is there, or could be made, and files can be made in it
    loaded: int  # pipelines that came from it
    compiled: int  # pipelines that had to be compiled
    problem: str  # the last file or folder that could not be used, and why; empty: none

    def __str__(self) -> str:
        state = f"{self.loaded} pipelines loaded, {self.compiled} compiled" if self.usable else "not usable"
        problem = f"; last problem: {self.problem}" if self.problem else ""
        return f"{self.folder or 'none'}: {state}{problem}"


@dataclasses.dataclass(frozen=True)
class Info:
    """A snapshot; `str()` of it is what `python -m mpskernels info` prints."""

    device: str  # the chip, "Apple M4"
    gpu_family: int  # Apple GPU family: 7 is M1, 8 M2, 9 M3 and M4, 10 M5
    simulated: bool  # a software Metal device, whose wall times are not GPU times
    torch: str
    metallib: str  # its path; a folder of sources where the build had no Metal compiler
    metallib_built_by: str
    functions: int  # kernels in the metallib
    matrix_units: str  # of M5: "used", or why they are not
    cache: Cache | None  # of a folder of sources; a metallib needs none
    pipelines: list[str]  # created so far, as name?constant=value
    launches: dict[str, dict[str, int]]  # op -> pipeline -> how often it was dispatched

    def __str__(self) -> str:
        kind = "simulated in software; wall times are not GPU times" if self.simulated else "real"
        lines = [
            f"device     {self.device} ({kind}), Apple GPU family {self.gpu_family}",
            f"torch      {self.torch}",
            f"metallib   {self.metallib}",
            f"           {self.functions} functions, built by {self.metallib_built_by}",
            f"metal 4    matrix units {self.matrix_units}",
            *([f"cache      {self.cache}"] if self.cache else []),
            f"pipelines  {len(self.pipelines)} created",
        ]
        width = max(map(len, self.launches), default=0)
        lines += [
            f"launches   {op:<{width}}  {_yes_only(pipeline)}  x{count}"
            for op, pipelines in sorted(self.launches.items())
            for pipeline, count in sorted(pipelines.items())
        ]
        return "\n".join(lines)


def _yes_only(pipeline: str) -> str:
    """The label without the constants that are 0, which may be many."""
    return re.sub(r"(?<=[?,])\w+=0(,|$)", "", pipeline).rstrip("?,")


def info() -> Info:
    """The state of this process. Opens the metallib where no op has done so, and raises where it cannot be opened; of a
    folder of sources, compiles all."""
    path = _C.metallib_path()
    built = json.loads((Path(__file__).parent / "build.json").read_text())
    from_source = Path(path).is_dir()
    return Info(
        device=_C.device_name(),
        gpu_family=_C.gpu_family(),
        simulated=sys.platform != "darwin",
        torch=torch.__version__,
        metallib=path,
        metallib_built_by="Metal itself, from source at first use" if from_source else built["metallib"],
        functions=len(_C.function_names()),
        matrix_units=f"not used: {problem}" if (problem := _C.tensor_units_problem()) else "used",
        cache=Cache(*_C.cache_report()) if from_source else None,
        pipelines=_C.pipelines(),
        launches=_C.launches(),
    )
