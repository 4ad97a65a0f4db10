"""What a dispatch costs, as exact counts: the same in every run, on every machine.

    with mpskernels.simulator.profile() as p:
        mpskernels.matmul(a, b)
    print(p.table())

Times come from the counts and a table of chips, by `mpskernels.simulator.model`; nothing here is measured with a clock.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mpskernels.simulator import _simulator, model
from mpskernels.simulator.chips import Chip, find
from mpskernels.simulator.model import SIMD_WIDTH


@dataclass(frozen=True)
class Dispatch:
    """The counts of one dispatch. Sums over all its threads where nothing else is said."""

    kernel: str  # label of the pipeline, `name?constant=value`
    threadgroups: tuple[int, int, int]
    threads_per_threadgroup: tuple[int, int, int]
    threads: int  # of the grid
    threadgroup_memory: int  # bytes, of a threadgroup

    matrix_flops: int  # of simdgroup_matrix: 2 * 8 * 8 * 8 for each multiply-accumulate
    matrix_operations: int
    tensor_flops: int  # of matmul2d: 2 * m * n * k, with k in steps of 16
    f32_flops: int  # scalar and vector arithmetic; a fused multiply-add is 2
    f16_flops: int  # of half and bfloat
    special: int  # evaluations of exp, log, sin, rsqrt, ...
    integer_operations: int
    instructions: int  # all, of all lanes
    simd_instructions: int  # issued: of the busiest lane of each simdgroup

    device_read: int  # bytes requested
    device_written: int
    device_read_unique: int  # distinct bytes: what must come from DRAM once
    device_written_unique: int
    device_accesses: int  # loads and stores of a simdgroup
    device_lines: int  # distinct lines of 128 bytes, summed over those accesses
    device_lines_ideal: int  # the fewest lines that could hold the distinct bytes of each
    device_lines_shared: int  # of those, what a simdgroup of matmul2d reads after another of its threadgroup: from L1
    constant_read: int  # bytes requested of arguments in `constant`

    threadgroup_read: int  # bytes requested
    threadgroup_written: int
    threadgroup_accesses: int  # loads and stores of a simdgroup
    bank_cycles: int  # of 32 banks of 4 bytes: the most distinct words in one bank, summed over those accesses
    bank_cycles_ideal: int

    atomics: int
    barriers: int  # threadgroup barriers that a thread executes, the most of any
    simdgroup_barriers: int
    simd_operations: int  # simd_sum, simd_shuffle, ..., once for each simdgroup

    # Threadgroups in a row that have as much work, how many they are and how much it is for each: instructions issued,
    # and 16 more for a multiply-accumulate of fragments, and one for 256 FLOP of matmul2d.
    work: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """The label without the constants that are 0, which may be many."""
        kernel, _, constants = self.kernel.partition("?")
        given = [constant for constant in constants.split(",") if constant and not constant.endswith("=0")]
        return f"{kernel}?{','.join(given)}" if given else kernel

    @property
    def groups(self) -> int:
        """Threadgroups, all together."""
        x, y, z = self.threadgroups
        return x * y * z

    @property
    def simdgroups_per_threadgroup(self) -> int:
        x, y, z = self.threads_per_threadgroup
        return -(-x * y * z // SIMD_WIDTH)

    @property
    def active(self) -> float:
        """The lanes that work where a simdgroup issues an instruction: 1 without divergence and idle threads."""
        return self.instructions / (SIMD_WIDTH * self.simd_instructions) if self.simd_instructions else 1.0

    @property
    def coalescing(self) -> float:
        """The fewest lines that could serve the device accesses, over those that do."""
        return self.device_lines_ideal / self.device_lines if self.device_lines else 1.0

    @property
    def bank_conflicts(self) -> float:
        """Cycles of the threadgroup memory's banks over the fewest that could move as much: 1 without conflicts."""
        return self.bank_cycles / self.bank_cycles_ideal if self.bank_cycles_ideal else 1.0

    @property
    def flops(self) -> int:
        return self.matrix_flops + self.tensor_flops + self.f32_flops + self.f16_flops

    @property
    def device_bytes(self) -> int:
        """Bytes requested, read and written."""
        return self.device_read + self.device_written

    @property
    def device_bytes_unique(self) -> int:
        """Distinct bytes, read and written: the least that DRAM must move."""
        return self.device_read_unique + self.device_written_unique

    @property
    def threadgroup_bytes(self) -> int:
        return self.threadgroup_read + self.threadgroup_written


@dataclass
class Profile:
    """The dispatches of a `with profile()` block, in order, once the block has been left."""

    dispatches: list[Dispatch] = field(default_factory=list)

    def table(self, chip: str | Chip | None = None) -> str:
        """A line for each kind of dispatch, the most time first, with the time that the model predicts on `chip`
        (default: the simulated one) and what binds it."""
        chip = find(chip)
        kinds = Counter(self.dispatches)
        predicted = {dispatch: model.predict(dispatch, chip) for dispatch in kinds}
        times = {dispatch: predicted[dispatch].seconds * count for dispatch, count in kinds.items()}
        rows = [["kernel", "times", *_COLUMNS]]
        for dispatch in sorted(kinds, key=times.get, reverse=True):
            cells = [column(dispatch, predicted[dispatch]) for column in _COLUMNS.values()]
            rows.append([dispatch.name, str(kinds[dispatch]), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        head = (
            f"{len(self.dispatches)} dispatches, {_time(sum(times.values()))} on {chip.name} with {chip.gpu_cores} "
            "cores: predicted from counts, not measured"
        )
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        return "\n".join([head, *lines, _LEGEND])

    def json(self, chips: Sequence[str | Chip] | None = None) -> str:
        """Every dispatch with its counts and, for each of `chips` (default: the simulated one), what is predicted."""
        chosen = [find(chip) for chip in chips or [None]]
        kinds = {
            dispatch: asdict(dispatch)
            | {"predicted": {chip.name: asdict(model.predict(dispatch, chip)) for chip in chosen}}
            for dispatch in set(self.dispatches)
        }
        return json.dumps({"dispatches": [kinds[dispatch] for dispatch in self.dispatches]}, indent=1)

    def plot(self, path: str | Path, chips: Sequence[str | Chip] | None = None) -> None:
        """Draws a roofline for each of `chips` (default: the simulated one) into the file `path`: a point for each kind
        of dispatch, at its FLOP for each distinct byte and its predicted FLOP/s.

        Raises:
            RuntimeError: matplotlib is not installed.
        """
        from mpskernels.simulator import roofline

        roofline.draw(self.dispatches, path, [find(chip) for chip in chips or [None]])


@contextlib.contextmanager
def profile(*, only: int | None = None) -> Iterator[Profile]:
    """Counts what every dispatch inside the block does. Waits for the device on entering and on leaving.

    Kernels are compiled again with every access and every basic block instrumented, once for each.

    Args:
        only: the one threadgroup that runs in each dispatch, counted along x, then y, then z; none does in a grid that
            has fewer. Results are then incomplete, and so are distinct bytes. For grids too large to run, whose
            threadgroups are known to be alike.

    Yields:
        The profile, whose dispatches are there when the block has been left.

    Raises:
        RuntimeError: inside another `profile()`; `only` under check, which would miss what the others write.
    """
    check, profiling, seed, _ = before = _simulator.watching()
    if profiling:
        raise RuntimeError("profile() is counting already, and its dispatches belong to one block")
    if check and only is not None:
        raise RuntimeError("profile(only=...) leaves memory unwritten, and check would report it")
    _simulator.synchronize()
    _simulator.take_dispatches()  # of a block that failed
    _simulator.watch(check, True, seed, only)
    found = Profile()
    try:
        yield found
    finally:
        try:
            _simulator.synchronize()
            found.dispatches += [_dispatch(counts) for counts in _simulator.take_dispatches()]
        finally:
            _simulator.watch(*before)


def _dispatch(counts: dict) -> Dispatch:
    return Dispatch(**{name: tuple(value) if isinstance(value, list) else value for name, value in counts.items()})


_COLUMNS: dict[str, Callable[[Dispatch, model.Prediction], str]] = {
    "threadgroups": lambda d, p: "x".join(map(str, d.threadgroups)),
    "time each": lambda d, p: _time(p.seconds),
    "of light": lambda d, p: f"{100 * p.fraction:.0f}%",
    "binds": lambda d, p: p.binds,
    "GFLOP": lambda d, p: f"{d.flops / 1e9:.3g}",
    "MB": lambda d, p: f"{d.device_bytes_unique / 1e6:.3g}",
    "requested": lambda d, p: f"{d.device_bytes / (d.device_bytes_unique or 1):.3g}x",
    "coalesced": lambda d, p: f"{100 * d.coalescing:.0f}%",
    "banks": lambda d, p: f"{d.bank_conflicts:.3g}x",
    "active": lambda d, p: f"{100 * d.active:.0f}%",
    "barriers": lambda d, p: str(d.barriers),
}
_LEGEND = """\
of light: of the speed of light. MB: distinct bytes of device memory; requested: all bytes over those.
banks: cycles of threadgroup memory over the fewest possible. active: lanes at work. barriers: of a thread."""


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
