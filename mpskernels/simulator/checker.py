"""Checks what kernels do while they run: races, bounds, memory without a value, barriers that not all threads reach."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from mpskernels.simulator import _simulator


@dataclass(frozen=True)
class Access:
    """An access to memory, a call that waits for other threads ("wait"), or another operation."""

    file: str
    line: int
    column: int
    function: str
    kind: str  # "read", "write", "atomic", "wait", "shift" or "division"
    threadgroup: tuple[int, int, int]  # its position in the grid
    thread: tuple[int, int, int]  # its position in the threadgroup


@dataclass(frozen=True)
class Finding:
    """Something wrong that a kernel did. The same at the same places of the source is one finding."""

    kind: str  # see `check`
    scope: str  # of a race, a double store or a divergence: "simdgroup", "threadgroup" or "grid"
    kernel: str  # the label of its pipeline
    text: str
    access: Access | None = None
    other: Access | None = None  # the earlier access of a race
    buffer: str = ""
    count: int = 1

    def __str__(self) -> str:
        return self.text + (f"\n  ({self.count} times)" if self.count > 1 else "")


class CheckError(RuntimeError):
    """Kernels did something wrong under `check`."""

    def __init__(self, findings: list[Finding]):
        self.findings = findings
        super().__init__("\n".join([f"{len(findings)} finding(s) in the kernels that ran", *map(str, findings)]))


@dataclass
class Report:
    """What `check` found so far; complete when its block has ended."""

    findings: list[Finding] = field(default_factory=list)

    def collect(self) -> None:
        """Waits for the device and adds what was found, also if a kernel failed."""
        try:
            _simulator.synchronize()
        finally:
            self._take()

    def _take(self) -> None:
        for entry in _simulator.take_findings():
            places = {key: Access(**entry.pop(key)) if entry[key] else entry.pop(key) for key in ("access", "other")}
            self.findings.append(Finding(**entry, **places))


_open: list[Report] = []  # of the blocks that we are in, the innermost last


@contextlib.contextmanager
def check(*, report_only: bool = False, seed: int | None = None) -> Iterator[Report]:
    """Runs the kernels of the block on a device that watches every access.

    Kernels are compiled again with every access instrumented, and run one threadgroup at a time. What they do wrong
    becomes findings, of the kinds

    - "race": two threads touch the same memory, one of them writes, and nothing orders them: no barrier with the
      mem_flags of that memory (threadgroup_barrier between simdgroups, simdgroup_barrier at least between lanes of
      one, and nothing between threadgroups); "double store": both write one element of a buffer;
    - "bounds", "null", "read-only", "misaligned": an access outside the binding or the threadgroup array that its
      pointer was made for, through null, a write where the argument is constant, an address that its type forbids;
    - "uninitialised": a read of threadgroup memory that this threadgroup has not written, or of a tensor from
      `torch.empty` (allocated within the block) where nobody has; "not stored": an element of such a tensor that a
      kernel could write is read by the host, and nobody stored it;
    - "overflow": a 32-bit index with a product in it differs from what 64 bits give; "division" by zero; "shift" by
      as many bits as there are, or more;
    - "divergence": a barrier that not all threads reach, a simd operation that reads an inactive lane, an operation
      on simdgroup matrices that not all lanes perform.

    It sees what the compiled kernel does: a read whose result is not used may have been optimised away. A struct that
    is copied whole counts as written where any of it is, as it may have holes.

    Args:
        report_only: collect findings and do not raise.
        seed: permutes the order in which threadgroups, simdgroups and lanes run; the same in every run.

    Yields:
        The report, whose findings are complete when the block ends.

    Raises:
        CheckError: at the end of the block, with all findings. An exception that leaves the block gets them as a note.
    """
    before = _simulator.watching()
    report = Report()
    if _open:
        _open[-1].collect()  # what came before this block belongs to the one around it
    else:
        _simulator.synchronize()
        _simulator.take_findings()
    _simulator.watch(True, before[1], seed)
    _open.append(report)
    try:
        yield report
    except BaseException as error:
        with contextlib.suppress(RuntimeError):
            report.collect()
        if report.findings:
            error.add_note(str(CheckError(report.findings)))
        raise
    else:
        report.collect()
    finally:
        _open.remove(report)
        _simulator.watch(*before)
    if report.findings and not report_only:
        raise CheckError(report.findings)


def compare_schedules(run: Callable[[], object], seeds: Iterable[int] = range(4)) -> Report:
    """Runs `run` once in order and once for each seed under `check`, and compares what it returns.

    Args:
        run: gives a tensor, or a nest of tuples, lists and dicts of tensors; it must do the same work every time.
        seeds: of the schedules.

    Returns:
        A report of all runs; a result that is not the same, bit by bit, is a finding of the kind "schedule".
    """
    report = Report()
    expected = None
    for seed in [None, *seeds]:
        with check(report_only=True, seed=seed) as found:
            result = [t.cpu() for t in torch.utils._pytree.tree_leaves(run()) if isinstance(t, torch.Tensor)]
        known = {_fault(f) for f in report.findings}
        report.findings += [f for f in found.findings if _fault(f) not in known]
        if expected is None:
            expected = result
            continue
        for number, (a, b) in enumerate(zip(expected, result, strict=True)):
            if a.shape != b.shape or not torch.equal(_bytes(a), _bytes(b)):
                text = f"schedule: result {number} depends on the order of threads: that of seed {seed} differs"
                report.findings.append(Finding("schedule", "", "", text))
    return report


def _fault(finding: Finding) -> tuple:
    """What makes findings of two schedules the same."""
    lines = {(a.file, a.line, a.column) for a in (finding.access, finding.other) if a}
    return finding.kind, finding.scope, finding.kernel, finding.buffer, frozenset(lines)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def check_process() -> None:
    """Checks all that this process runs from here on, as MPSK_CHECK=1 asks for.

    At its end the process prints the findings, and then fails.
    """
    _simulator.watch(True, False, None)
    report = Report()
    _open.append(report)

    def at_end() -> None:
        failure = None
        try:
            report.collect()
        except RuntimeError as error:
            failure = error
        if report.findings:
            print(CheckError(report.findings), file=sys.stderr)
        if failure:
            print(failure, file=sys.stderr)
        if report.findings or failure:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    atexit.register(at_end)
