"""The time of a dispatch on M1 to M5, predicted from its counts and what is known of the chip.

The time is the largest of six terms, as if the kernel overlapped them perfectly:

- matrix: FLOPs of simdgroup_matrix and of matmul2d, each at the rate of the best published kernel on that chip; before
  M5 matmul2d is made of simdgroup_matrix;
- alu: issue slots of the schedulers: fragment multiplications at their microbenchmarked cost, fp, special, integer and
  simd operations; on M3 and later integer instructions issue beside the rest;
- dram: distinct bytes at the highest bandwidth that a published kernel has reached on that chip;
- cache: lines of 128 bytes through L1, and what they had to hold through L2; operands of matmul2d that simdgroups of a
  threadgroup share come from L2 once;
- threadgroup: bytes of threadgroup memory, and a cycle for each bank conflict;
- launch: from one small dispatch to the next.

Threadgroups go in order to the core that is free first, and the core that is busy longest decides (the tail); a core
holds as many as its registers and threadgroup memory allow (occupancy), and too few simdgroups leave latency uncovered,
of arithmetic and of DRAM. Speed of light is what no kernel can beat: the necessary FLOPs at the matrix rate (those
without matrix operations: at the ALUs' peak) or the necessary bytes at the bandwidth, with the rates of above.

What it leaves out: whether bytes that are requested twice are still in a cache (it takes for granted that they are;
`dram_uncached` is the other end), registers (64 for each thread are assumed), barriers, atomics and the cost of
single instructions, of which no figures are published, the element type of matrix operations (bfloat is slow on M1 and
M2), throttling, and everything that happens on the CPU. `python -m mpskernels.simulator.validation` compares it with
what others have measured.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpskernels.simulator.chips import Chip

if TYPE_CHECKING:
    from mpskernels.simulator.profiler import Dispatch

SIMD_WIDTH = 32
LINE_BYTES = 128
BANK_BYTES = 128  # that the banks of threadgroup memory move in one of the profiler's cycles
SCHEDULERS = 4  # of a core
REGISTERS = 64  # of 32 bits, for each thread: assumed
MATRIX_FLOP = 1024  # of a multiplication of fragments
LOADS_IN_FLIGHT = 4  # of a simdgroup, before it needs the first one's result: assumed


@dataclass(frozen=True)
class Prediction:
    """What the model says of a dispatch on a chip. Times in seconds."""

    chip: str
    gpu_cores: int
    seconds: float
    terms: dict[str, float]
    binds: str  # the largest term
    speed_of_light: float  # no kernel that does this job takes less
    limit: str  # what sets it: "flops" or "bytes"
    fraction: float  # speed_of_light / seconds
    resident: int  # threadgroups that a core holds at a time
    occupancy: float  # their threads, over the most that a core can hold
    balance: float  # work of the average core over that of the busiest
    dram_uncached: float  # what the dram term would be if no cache held anything


def predict(
    dispatch: Dispatch,
    chip: Chip,
    *,
    necessary_flops: float | None = None,
    necessary_bytes: float | None = None,
    exact_f32: bool = False,
) -> Prediction:
    """The predicted time of `dispatch` on `chip`, and the speed of light of its job.

    Args:
        necessary_flops: FLOPs without which the job cannot be done. Default: those that the kernel did, of matrix
            operations where it has any.
        necessary_bytes: bytes that must move. Default: the distinct bytes that the kernel read and wrote.
        exact_f32: products are float32, which the matrix units of M5 do not do: its speed of light is then that of
            simdgroup_matrix.
    """
    core, clock = chip.core, chip.clock_ghz * 1e9
    simdgroups = dispatch.simdgroups_per_threadgroup
    resident = _resident(dispatch, chip)
    dealt = _deal(dispatch, chip.gpu_cores)
    balance = 1 / (chip.gpu_cores * max(sum(groups * work for groups, work in runs) for runs in dealt))
    cores = chip.gpu_cores * balance  # so many would be as fast if all were busy to the end

    # Cycles of schedulers, of all simdgroups together. A lane that idles costs as much as one that works.
    simds = SIMD_WIDTH * dispatch.active
    tensor_tflops = chip.tensor_tflops or chip.matrix_tflops
    operations = dispatch.matrix_operations + (0 if chip.tensor_tflops else dispatch.tensor_flops / MATRIX_FLOP)
    matrix = operations * core.matrix_cycles
    floating = (dispatch.f32_flops + dispatch.f16_flops / core.half_rate) / 2 / simds
    floating += dispatch.special / simds * core.special_cycles + dispatch.simd_operations * core.simd_cycles
    integer = dispatch.integer_operations / simds
    issued = max(matrix + floating, integer) if core.integer_beside else matrix + floating + integer
    # Simdgroups of a core without which schedulers wait. Fragment multiplications are few and long.
    waits = (
        matrix * SCHEDULERS * core.matrix_latency / core.matrix_cycles + (issued - matrix) * core.saturating_simdgroups
    )
    saturating = max(SCHEDULERS, waits / issued) if issued else SCHEDULERS

    alu = issued * max(_in_rounds(runs, resident, saturating / simdgroups) for runs in dealt) / (SCHEDULERS * clock)

    useful = dispatch.device_lines_ideal * LINE_BYTES
    in_flight = min(dispatch.groups, chip.gpu_cores * resident) * simdgroups * LOADS_IN_FLIGHT
    in_flight *= useful / dispatch.device_accesses if dispatch.device_accesses else 0.0
    bandwidth = chip.stream_gb_per_s * 1e9
    reached = min(bandwidth, in_flight / (chip.dram_latency_ns * 1e-9)) or bandwidth

    from_l2 = useful - dispatch.device_lines_shared * LINE_BYTES
    conflicts = dispatch.bank_cycles - dispatch.bank_cycles_ideal
    terms = {
        "matrix": dispatch.matrix_flops / (chip.matrix_tflops * 1e12 * balance)
        + dispatch.tensor_flops / (tensor_tflops * 1e12 * balance),
        "alu": alu,
        "dram": dispatch.device_bytes_unique / reached,
        "cache": max(dispatch.device_lines * LINE_BYTES / core.l1_bytes, from_l2 / core.l2_bytes) / (cores * clock),
        "threadgroup": (dispatch.bank_cycles_ideal * BANK_BYTES / core.threadgroup_bytes + conflicts) / (cores * clock),
        "launch": chip.launch_us * 1e-6,
    }
    binds = max(terms, key=lambda name: terms[name])

    scalar = dispatch.f32_flops + dispatch.f16_flops / core.half_rate
    peak = chip.alu_tflops
    if dispatch.matrix_flops or dispatch.tensor_flops:
        scalar = dispatch.matrix_flops + dispatch.tensor_flops
        peak = chip.matrix_tflops if exact_f32 or chip.tensor_tflops is None else chip.tensor_tflops
    flops_floor = (scalar if necessary_flops is None else necessary_flops) / (peak * 1e12)
    bytes_floor = (dispatch.device_bytes_unique if necessary_bytes is None else necessary_bytes) / bandwidth
    speed_of_light = max(flops_floor, bytes_floor)
    return Prediction(
        chip=chip.name,
        gpu_cores=chip.gpu_cores,
        seconds=terms[binds],
        terms=terms,
        binds=binds,
        speed_of_light=speed_of_light,
        limit="flops" if flops_floor > bytes_floor else "bytes",
        fraction=speed_of_light / terms[binds],
        resident=resident,
        occupancy=resident * simdgroups * SIMD_WIDTH / core.max_threads,
        balance=balance,
        dram_uncached=dispatch.device_lines * LINE_BYTES / reached,
    )


Runs = tuple[tuple[int, float], ...]  # threadgroups with as much work, and how much: as Dispatch.work


def _deal(dispatch: Dispatch, cores: int) -> set[Runs]:
    """The threadgroups of each core, those of cores with the same ones once: each, in order, goes to the core that is
    free first. Their work adds up to 1."""
    total = sum(groups * work for groups, work in dispatch.work) if dispatch.work else 0
    if not total or len(dispatch.work) == 1:
        return {((math.ceil(dispatch.groups / cores), 1 / dispatch.groups),)}
    heap: list[tuple[int, int, Runs]] = [(0, core, ()) for core in range(cores)]  # the core's work comes first
    for groups, work in dispatch.work:
        left = groups if work else 0
        while left:
            if left >= cores and max(heap)[0] - heap[0][0] <= work:  # each gets one in turn, and again
                each, left = divmod(left, cores)
                heap = [(load + each * work, core, (*its, (each, work))) for load, core, its in heap]
                continue
            load, core, its = heap[0]
            heapq.heapreplace(heap, (load + work, core, (*its, (1, work))))
            left -= 1
    return {tuple((groups, work / total) for groups, work in its) for _, _, its in heap}


def _in_rounds(runs: Runs, resident: int, least: float) -> float:
    """The time of a core for its threadgroups, `resident` at a time, in that of their work on a saturated core; no
    round is over before `least` threadgroups of its longest would be."""
    time = count = total = longest = 0
    for groups, work in runs:
        left = groups
        if count == 0:
            time += left // resident * max(resident, least) * work
            left %= resident
        while left:
            taken = min(left, resident - count)
            left -= taken
            count, total, longest = count + taken, total + taken * work, max(longest, work)
            if count == resident:
                time += max(total, least * longest)
                count = total = longest = 0
    return time + max(total, least * longest)


def _resident(dispatch: Dispatch, chip: Chip) -> int:
    """Threadgroups that a core holds at a time: as many as fit, and one in any case."""
    threads = dispatch.simdgroups_per_threadgroup * SIMD_WIDTH
    fits = min(chip.core.max_threads, chip.core.register_kib * 1024 / (4 * REGISTERS)) // threads
    if dispatch.threadgroup_memory:
        fits = min(fits, chip.core.threadgroup_kib * 1024 // dispatch.threadgroup_memory)
    return max(1, int(fits))
