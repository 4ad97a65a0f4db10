"""What is known of the GPUs M1 to M5, every number with its source beside it.

Apple publishes cores and memory bandwidth. The rest was measured by others, on some of the chips; what is carried over
to the rest says `derived` and from what, and what nobody has published is None. Nothing here was measured by us.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from mpskernels.simulator import _simulator

# Where numbers come from.
APPLE = "Apple's data sheets"
METAL_BENCHMARKS = "github.com/philipturner/metal-benchmarks"
APPLEGPUINFO = "github.com/philipturner/applegpuinfo"
CHIPS_AND_CHEESE = "Chips and Cheese, measured through OpenCL"
STREAM = "STREAM on the GPU, Apple vs. Oranges, arXiv 2502.05317"
TORCH_GEMM = "github.com/zzc0721/torch-performance-test-data, issues 33, 65, 191: torch.mm on mps"
M5_TESTS = "michaelstinkerings, measured on a 10-core M5"
TZAKHARKO = "tzakharko.github.io, measured on the A19's GPU, the core of M5"


class Number(float):
    """A float with the place it comes from."""

    source: str

    def __new__(cls, value: float, source: str) -> Self:
        number = super().__new__(cls, value)
        number.source = source
        return number


@dataclass(frozen=True)
class Core:
    """What one GPU core of a generation does. Rates are for a cycle of the core, which has four schedulers."""

    apple_family: int
    lanes: Number  # fp32 multiply-adds
    half_rate: Number  # fp16 arithmetic over fp32
    integer_beside: bool  # integer and floating point instructions of different simdgroups issue in the same cycle
    matrix_cycles: Number  # a scheduler's, for an 8x8x8 multiply-accumulate of simdgroup_matrix
    matrix_latency: Number  # cycles until its result can be used
    special_cycles: Number  # a scheduler's, for an exp, log, rsqrt, ... of a simdgroup
    simd_cycles: Number  # a scheduler's, for a simd_sum, simd_shuffle, ...
    saturating_simdgroups: Number  # that hide the latency of dependent arithmetic
    threadgroup_bytes: Number  # of threadgroup memory, moved in a cycle
    threadgroup_kib: Number  # threadgroup memory that resident threadgroups share
    register_kib: Number
    max_threads: Number  # resident
    l1_bytes: Number  # moved in a cycle, in whole lines
    l2_bytes: Number  # moved in a cycle between the core and L2


@dataclass(frozen=True)
class Chip:
    """A chip, in its largest version; `with_cores` gives the smaller ones."""

    key: str  # as MPSK_SIMULATE spells it
    name: str
    core: Core
    gpu_cores: int
    clock_ghz: Number
    dram_gb_per_s: Number  # of the data sheet
    stream_gb_per_s: Number  # of DRAM, the most that a published GPU kernel has reached
    matrix_tflops: Number  # with simdgroup_matrix, the most that a published kernel has reached
    tensor_tflops: Number | None  # with the matrix units of M5 in half precision, the same; None where there are none
    slc_mib: Number | None
    l2_mib: Number | None
    dram_latency_ns: Number
    launch_us: Number  # from one small dispatch to the next that depends on it
    fence_us: Number  # the CPU waits for the GPU

    @property
    def alu_tflops(self) -> float:
        """fp32 multiply-adds, each two: no kernel reaches it."""
        return self.gpu_cores * self.core.lanes * 2 * self.clock_ghz / 1e3

    @property
    def l2_gb_per_s(self) -> float:
        return self.gpu_cores * self.core.l2_bytes * self.clock_ghz

    def with_cores(self, gpu_cores: int) -> Chip:
        """A version with fewer cores, whose matrix rates fall in proportion."""
        share = gpu_cores / self.gpu_cores

        def part(rate: Number | None) -> Number | None:
            return rate and Number(rate * share, f"derived: {gpu_cores} of {self.gpu_cores} cores; {rate.source}")

        matrix, tensor = part(self.matrix_tflops), part(self.tensor_tflops)
        return replace(self, gpu_cores=gpu_cores, matrix_tflops=matrix, tensor_tflops=tensor)


_AS_M2 = "derived: as on M1 and M2, none is published"

M1_CORE = Core(
    apple_family=7,
    lanes=Number(128, METAL_BENCHMARKS),
    half_rate=Number(1, METAL_BENCHMARKS),
    integer_beside=False,
    matrix_cycles=Number(17, f"{METAL_BENCHMARKS}: 17 in fp16, 18 in fp32, 16 are ideal"),
    matrix_latency=Number(35, f"{METAL_BENCHMARKS}: 34 to 36"),
    special_cycles=Number(6, f"{METAL_BENCHMARKS}: exp2 and log2 4, reciprocal 6, rsqrt 8, sin 14"),
    simd_cycles=Number(8, f"{METAL_BENCHMARKS}: a shuffle 2, a sum 14.5, and the counts do not tell them apart"),
    saturating_simdgroups=Number(24, METAL_BENCHMARKS),
    threadgroup_bytes=Number(65, f"{METAL_BENCHMARKS}: 671 GB/s on an 8-core M1"),
    threadgroup_kib=Number(60, METAL_BENCHMARKS),
    register_kib=Number(208, METAL_BENCHMARKS),
    max_threads=Number(3072, METAL_BENCHMARKS),
    l1_bytes=Number(64, METAL_BENCHMARKS),
    l2_bytes=Number(32, f"{METAL_BENCHMARKS}; M1's 384 GB/s and M2 Pro's 1 TB/s ({CHIPS_AND_CHEESE}) are a sixth more"),
)
M2_CORE = replace(M1_CORE, apple_family=8)
M3_CORE = replace(
    M2_CORE,
    apple_family=9,
    lanes=Number(128, f"derived: as on M2; {TORCH_GEMM} reaches 90 % of it on M3 Max"),
    half_rate=Number(1, f"{_AS_M2}; fp16 GEMM is at most a tenth faster than fp32"),
    integer_beside=True,  # Apple's tech talk on the A17 Pro and M3 family GPU
    threadgroup_bytes=Number(128 / 1.45, "one report on M3 Pro: 1.45 cycles for 32 lanes of 4 bytes"),
    threadgroup_kib=Number(60, f"{_AS_M2}: registers and threadgroup memory share one cache from M3 on"),
    register_kib=Number(208, f"{_AS_M2}: registers and threadgroup memory share one cache from M3 on"),
    max_threads=Number(3072, _AS_M2),
    l1_bytes=Number(64, _AS_M2),
    l2_bytes=Number(32, _AS_M2),
)
M4_CORE = M3_CORE
M5_CORE = replace(
    M4_CORE,
    apple_family=10,
    lanes=Number(128, f"{M5_TESTS}: 3.76 TFLOPS, 93 % of it"),
    half_rate=Number(1.7, TZAKHARKO),
)


@dataclass(frozen=True)
class Share:
    """Stands for a rate that nobody has published: as much of the peak as the best kernel reached on another chip."""

    of_peak: float
    on: str

    def number(self, peak: float) -> Number:
        return Number(self.of_peak * peak, f"derived: {100 * self.of_peak:.0f} % of the peak, as on {self.on}")


_LAUNCH = Number(2.6, "github.com/ml-explore/mlx/issues/4521: 2.4 to 2.75 on M3 Ultra; derived elsewhere: the same")
_FENCE = Number(180, "github.com/ml-explore/mlx/issues/4438; derived: the same on all chips")
_LATENCY_M1 = Number(311, CHIPS_AND_CHEESE)
_LATENCY_M2_PRO = Number(342, CHIPS_AND_CHEESE)
_LATENCY = Number(342, f"derived: as on M2 Pro; {CHIPS_AND_CHEESE}")
_TENSOR_FLOP = 1024  # of a core in a cycle, in half precision; TZAKHARKO

# The clocks. M3 and later: the sources differ by up to 7 %.
_CLOCK_M1 = Number(1.278, METAL_BENCHMARKS)
_CLOCK_M1_PRO = Number(1.296, METAL_BENCHMARKS)
_CLOCK_M2 = Number(1.398, METAL_BENCHMARKS)
_CLOCK_M3 = Number(1.398, f"{APPLEGPUINFO}: 1.38 to 1.398")
_CLOCK_M4 = Number(1.47, f"1.47 to 1.578 in the sources; the lower makes {TORCH_GEMM} 83 % of the peak")
_CLOCK_M4_PRO = Number(1.578, f"{TORCH_GEMM} is 92 % of the peak; lists that say 1.8 contradict it")
_CLOCK_M5 = Number(1.578, M5_TESTS)
_CLOCK_M5_PRO = Number(1.6, "derived: about M5's; unpublished")

# Matrix rates of generations that have no published GEMM of their own chip: the best of another chip.
_M1_MATRIX = Share(0.89, "M1 Pro")
_M3_MATRIX = Share(0.90, "M3 Max")
_M4_MATRIX = Share(0.92, "M4 Max")
_M5_MATRIX = Share(0.93, "M5 Max")
_M1_STREAM = Share(0.88, "M1")
_M2_STREAM = Share(0.93, "M2 Max")
_M3_STREAM = Share(0.90, "M3")
_M4_STREAM = Share(0.83, "M4")


def _chip(
    key: str,
    core: Core,
    cores: int,
    clock: Number,
    *,
    dram: float,
    stream: Number | Share,
    matrix: Number | Share,
    tensor: Number | Share | None = None,
    slc: Number | None = None,
    l2: Number | None = None,
    latency: Number = _LATENCY,
) -> Chip:
    def rate(known: Number | Share | None, peak: float) -> Number | None:
        return known.number(peak) if isinstance(known, Share) else known

    cycles = cores * clock / 1e3  # in a picosecond, of all cores
    return Chip(
        key=key,
        name=_NAMES[key],
        core=core,
        gpu_cores=cores,
        clock_ghz=clock,
        dram_gb_per_s=Number(dram, APPLE),
        stream_gb_per_s=rate(stream, dram),
        matrix_tflops=rate(matrix, core.lanes * 2 * cycles),
        tensor_tflops=rate(tensor, _TENSOR_FLOP * cycles),
        slc_mib=slc,
        l2_mib=l2,
        dram_latency_ns=latency,
        launch_us=_LAUNCH,
        fence_us=_FENCE,
    )


_NAMES = {
    f"m{generation}{kind.lower()}": f"M{generation} {kind}".strip()
    for generation in range(1, 6)
    for kind in ("", "Pro", "Max", "Ultra")
}
_GPU_GUIDES = f"{METAL_BENCHMARKS} and {APPLEGPUINFO}"

CHIPS: dict[str, Chip] = {
    chip.key: chip
    for chip in (
        _chip(
            "m1",
            M1_CORE,
            8,
            _CLOCK_M1,
            dram=68,
            stream=Number(60, STREAM),
            matrix=_M1_MATRIX,
            slc=Number(8, _GPU_GUIDES),
            l2=Number(0.75, f"{METAL_BENCHMARKS}: 0.75 to 1"),
            latency=_LATENCY_M1,
        ),
        _chip(
            "m1pro",
            M1_CORE,
            16,
            _CLOCK_M1_PRO,
            dram=205,
            stream=_M1_STREAM,
            matrix=Number(4.75, f"{TORCH_GEMM}, fp16, torch 2.7"),
            slc=Number(24, _GPU_GUIDES),
            l2=Number(0.25, METAL_BENCHMARKS),
            latency=_LATENCY_M1,
        ),
        _chip(
            "m1max",
            M1_CORE,
            32,
            _CLOCK_M1_PRO,
            dram=410,
            stream=_M1_STREAM,
            matrix=_M1_MATRIX,
            slc=Number(48, _GPU_GUIDES),
            l2=Number(0.5, METAL_BENCHMARKS),
            latency=_LATENCY_M1,
        ),
        _chip(
            "m1ultra",
            M1_CORE,
            64,
            _CLOCK_M1_PRO,
            dram=819,
            stream=Number(680, "github.com/ml-explore/mlx/issues/3837: what the chip attains"),
            matrix=_M1_MATRIX,
            slc=Number(96, _GPU_GUIDES),
            l2=Number(1, METAL_BENCHMARKS),
            latency=_LATENCY_M1,
        ),
        _chip(
            "m2",
            M2_CORE,
            10,
            _CLOCK_M2,
            dram=102,
            stream=Number(91, STREAM),
            matrix=_M1_MATRIX,
            slc=Number(8, _GPU_GUIDES),
            l2=Number(1.5, METAL_BENCHMARKS),
        ),
        _chip(
            "m2pro",
            M2_CORE,
            19,
            _CLOCK_M2,
            dram=205,
            stream=_M2_STREAM,
            matrix=_M1_MATRIX,
            slc=Number(24, _GPU_GUIDES),
            l2=Number(3, f"{CHIPS_AND_CHEESE}; {METAL_BENCHMARKS} has 0.5"),
            latency=_LATENCY_M2_PRO,
        ),
        _chip(
            "m2max",
            M2_CORE,
            38,
            _CLOCK_M2,
            dram=410,
            stream=Number(380, "github.com/ml-explore/mlx/pull/1597: decode attention, 350 to 380"),
            matrix=_M1_MATRIX,
            slc=Number(48, _GPU_GUIDES),
            l2=Number(0.5, METAL_BENCHMARKS),
        ),
        _chip(
            "m2ultra",
            M2_CORE,
            76,
            _CLOCK_M2,
            dram=819,
            stream=Number(800, "github.com/ml-explore/mlx/pull/1597: decode attention in two passes, over 800"),
            matrix=_M1_MATRIX,
            slc=Number(96, _GPU_GUIDES),
        ),
        _chip(
            "m3",
            M3_CORE,
            10,
            _CLOCK_M3,
            dram=102,
            stream=Number(92, STREAM),
            matrix=_M3_MATRIX,
            slc=Number(8, _GPU_GUIDES),
        ),
        _chip(
            "m3pro",
            M3_CORE,
            18,
            _CLOCK_M3,
            dram=154,
            stream=_M3_STREAM,
            matrix=_M3_MATRIX,
            slc=Number(12, f"{_GPU_GUIDES}, uncertain"),
        ),
        _chip(
            "m3max",
            M3_CORE,
            40,
            _CLOCK_M3,
            dram=410,
            stream=_M3_STREAM,
            matrix=Number(12.84, f"{TORCH_GEMM}, fp16, torch 2.7"),
            slc=Number(48, _GPU_GUIDES),
        ),
        _chip(
            "m3ultra",
            M3_CORE,
            80,
            _CLOCK_M3,
            dram=819,
            stream=_M3_STREAM,
            matrix=Number(
                19.6 * 80 / 60,
                "derived: 80 of 60 cores; github.com/ml-explore/mlx/issues/3196: 19.6 on 60 cores, bf16, MPSGraph",
            ),
            slc=Number(96, _GPU_GUIDES),
        ),
        _chip(
            "m4",
            M4_CORE,
            10,
            _CLOCK_M4,
            dram=120,
            stream=Number(100, STREAM),
            matrix=Number(3.12, f"{TORCH_GEMM}, fp16, torch 2.8, a fanless MacBook Air"),
            slc=Number(8, _GPU_GUIDES),
        ),
        _chip(
            "m4pro",
            M4_CORE,
            20,
            _CLOCK_M4_PRO,
            dram=273,
            stream=_M4_STREAM,
            matrix=_M4_MATRIX,
            slc=Number(24, f"{_GPU_GUIDES}, uncertain"),
        ),
        _chip(
            "m4max",
            M4_CORE,
            40,
            _CLOCK_M4_PRO,
            dram=546,
            stream=_M4_STREAM,
            matrix=Number(14.8, f"{TORCH_GEMM}, fp16, torch 2.8; matmul2d too, arXiv 2606.12765"),
            slc=Number(48, f"{_GPU_GUIDES}, uncertain"),
        ),
        _chip(
            "m5",
            M5_CORE,
            10,
            _CLOCK_M5,
            dram=153,
            stream=Number(122, M5_TESTS),
            matrix=_M5_MATRIX,
            tensor=Number(13.84, f"{TORCH_GEMM}, fp16"),
        ),
        _chip(
            "m5pro",
            M5_CORE,
            20,
            _CLOCK_M5_PRO,
            dram=307,
            stream=Number(282, "github.com/ml-explore/mlx-lm/issues/1679: decode attention"),
            matrix=_M5_MATRIX,
            tensor=Share(0.87, "M5 Max"),
        ),
        _chip(
            "m5max",
            M5_CORE,
            40,
            _CLOCK_M5_PRO,
            dram=614,
            stream=Number(478, "mlxcel, issue 358: GEMV"),
            matrix=Number(15.3, "github.com/ml-explore/mlx/issues/3838: bf16, 4096^3 in 9 ms without the matrix units"),
            tensor=Number(57.3, "github.com/ml-explore/mlx/issues/3838: bf16, 4096^3 in 2.4 ms"),
        ),
    )
}


def find(name: str | Chip | None = None) -> Chip:
    """The chip of that name, as "M4 Max" or "m4max", or the chip itself; of None the one that the device stands for.

    Raises:
        ValueError: there is no such chip.
    """
    if isinstance(name, Chip):
        return name
    if name is None:
        return CHIPS[_simulator.facts()["chip"]]
    key = name.lower().removeprefix("apple").replace(" ", "").replace("-", "")
    if key not in CHIPS:
        raise ValueError(f"no chip {name!r}; there are: {', '.join(chip.name for chip in CHIPS.values())}")
    return CHIPS[key]
