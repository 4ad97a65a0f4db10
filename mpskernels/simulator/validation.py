"""The model against what others have measured on real chips: python -m mpskernels.simulator.validation

Each row takes the counts of our nearest equivalent kernel and predicts the published figure. Nothing is fitted to a
row, but the matrix rates and bandwidths of `chips` are themselves the best that was published: a row whose figure is
such a rate shows that our kernel comes that close to it, not that the model found the rate; it is marked `peak`.

The kernels are those that are chosen for the simulated chip. A large grid of threadgroups that do the same work is
profiled in part and counted in full.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction

import torch

from mpskernels.simulator import model
from mpskernels.simulator.chips import Chip, find
from mpskernels.simulator.profiler import Dispatch, profile

ZZC = "zzc0721/torch-performance-test-data"
MFA = "metal-flash-attention, README"
MLX_BENCHMARK = "TristanBilot/mlx-benchmark"


def grown(dispatch: Dispatch, groups: int, *, read: int, written: int) -> Dispatch:
    """The counts of a grid of `groups` threadgroups that do the same again and again; `read` and `written` are the
    distinct bytes of them all."""
    same = ("kernel", "threads_per_threadgroup", "threadgroup_memory", "barriers", "threadgroups", "work")
    times = Fraction(groups, dispatch.groups)
    counts = {
        field.name: round(getattr(dispatch, field.name) * times) for field in fields(Dispatch) if field.name not in same
    }
    each = dispatch.work[0][1]
    work = ((groups, each),) if len(dispatch.work) == 1 else dispatch.work * int(times)
    counts |= {"device_read_unique": read, "device_written_unique": written}
    return replace(dispatch, threadgroups=(groups, 1, 1), work=work, **counts)


def _one(run: Callable[[], object], only: int | None = None) -> Dispatch:
    """What `run` dispatches, which must be one kernel."""
    with profile(only=only) as p:
        run()
    [dispatch] = p.dispatches
    return dispatch


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to("mps")


@functools.cache
def gemm(dtype: torch.dtype, m: int = 4096, n: int = 4096, k: int = 4096) -> Dispatch:
    """The product of an m x k and a k x n matrix, whose tiles are all full, from its first threadgroup."""
    import mpskernels

    a, b = (torch.empty(shape, dtype=dtype, device="mps") for shape in ((m, k), (k, n)))
    whole = _one(lambda: mpskernels.matmul(a, b), only=0)
    first = replace(whole, threadgroups=(1, 1, 1), work=((1, sum(groups * each for groups, each in whole.work)),))
    read, written = (m + n) * k * dtype.itemsize, m * n * dtype.itemsize
    return grown(first, whole.groups, read=read, written=written)


@functools.cache
def attention(d: int, *, is_causal: bool = False, n: int = 4096, heads: int = 32) -> Dispatch:
    """Attention over n queries and keys in fp16, from one head and, without a mask, an eighth of its queries."""
    import mpskernels

    part = 1 if is_causal else 8
    q, k = _random(1, 1, n // part, d, dtype=torch.float16), _random(1, 1, n, d, dtype=torch.float16)
    tensor = heads * n * d * 2
    found = _one(lambda: mpskernels.attention(q, k, k, is_causal=is_causal))
    return grown(found, found.groups * heads * part, read=3 * tensor, written=tensor)


@functools.cache
def layer_norm(rows: int, columns: int) -> Dispatch:
    """A layer norm with weight and bias in fp32."""
    import mpskernels

    x, weight = _random(rows, columns, dtype=torch.float32), _random(columns, dtype=torch.float32)
    return _one(lambda: mpskernels.layer_norm(x, weight, weight))


@functools.cache
def rms_norm(rows: int, columns: int) -> Dispatch:
    import mpskernels

    x, weight = _random(rows, columns, dtype=torch.float32), _random(columns, dtype=torch.float32)
    return _one(lambda: mpskernels.rms_norm(x, weight))


@dataclass(frozen=True)
class Published:
    """A measurement by others."""

    chip: str
    gpu_cores: int
    what: str
    job: Callable[[], Dispatch]  # our nearest equivalent
    value: float
    unit: str  # of UNITS
    source: str
    within: float  # the largest relative error that this row may show
    remark: str = ""  # why it is off, or what else to know
    is_peak: bool = False  # it set a rate of `chips`


# A unit -> the prediction in it.
UNITS: dict[str, Callable[[model.Prediction, Dispatch, Chip], float]] = {
    "TFLOP/s": lambda p, d, chip: d.matrix_flops / p.seconds / 1e12,
    "% of ALUs": lambda p, d, chip: 100 * d.matrix_flops / p.seconds / 1e12 / chip.alu_tflops,
    "% of matrix": lambda p, d, chip: 100 * d.matrix_flops / p.seconds / 1e12 / chip.matrix_tflops,
    "us": lambda p, d, chip: p.seconds * 1e6,
    "us, fenced": lambda p, d, chip: p.seconds * 1e6 + chip.fence_us,  # the CPU waited for each
}

_F32, _F16, _BF16 = (functools.partial(gemm, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
_MUL_MAT = functools.partial(gemm, torch.float16, 4096, 512, 14336)
_D64, _D128 = functools.partial(attention, 64), functools.partial(attention, 128)
_CAUSAL = functools.partial(attention, 128, is_causal=True)
_LAYER_NORM, _ROW = functools.partial(layer_norm, 8192, 1024), functools.partial(rms_norm, 1, 1024)

_FP32 = "fp32 fragments count as fast as fp16"
_BF16_TOO = "bf16 fragments count as fast as fp16"
_NO_BF16 = "no bf16 arithmetic before M3, which the counts do not show"
_INTEGERS = "our index arithmetic takes slots of the ALUs, which M3 has beside"
_M3_OR_M4 = "M3 or M4, and cores, not said"
_OTHERS = "their kernel is further from the peak than ours is predicted"

PUBLISHED = (
    Published("M1 Pro", 16, "GEMM 4096 fp32", _F32, 4.28, "TFLOP/s", f"{ZZC}, torch 2.7", 0.15, _FP32),
    Published("M1 Pro", 16, "GEMM 4096 fp16", _F16, 4.75, "TFLOP/s", f"{ZZC}, torch 2.7", 0.10, _INTEGERS, True),
    Published("M1 Pro", 16, "GEMM 4096 bf16", _BF16, 2.30, "TFLOP/s", f"{ZZC}, torch 2.7", 1.10, _NO_BF16),
    Published("M3 Max", 40, "GEMM 4096 fp32", _F32, 11.5, "TFLOP/s", f"{ZZC}, torch 2.7", 0.15, _FP32),
    Published("M3 Max", 40, "GEMM 4096 fp16", _F16, 12.84, "TFLOP/s", f"{ZZC}, torch 2.7", 0.05, "", True),
    Published("M3 Max", 40, "GEMM 4096 bf16", _BF16, 11.25, "TFLOP/s", f"{ZZC}, torch 2.7", 0.15, _BF16_TOO),
    Published("M4", 10, "GEMM 4096 fp32", _F32, 2.98, "TFLOP/s", f"{ZZC}, torch 2.8", 0.10, _FP32),
    Published("M4", 10, "GEMM 4096 fp16", _F16, 3.12, "TFLOP/s", f"{ZZC}, torch 2.8", 0.05, "", True),
    Published("M4", 10, "GEMM 4096 bf16", _BF16, 2.92, "TFLOP/s", f"{ZZC}, torch 2.8", 0.10, _BF16_TOO),
    Published("M4 Max", 40, "GEMM 4096 fp32", _F32, 13.8, "TFLOP/s", f"{ZZC}, torch 2.8", 0.10, _FP32),
    Published("M4 Max", 40, "GEMM 4096 fp16", _F16, 14.8, "TFLOP/s", f"{ZZC}, torch 2.8", 0.05, "", True),
    Published("M4 Max", 40, "GEMM 4096 bf16", _BF16, 13.2, "TFLOP/s", f"{ZZC}, torch 2.8", 0.15, _BF16_TOO),
    Published("M4 Max", 40, "GEMM 4096x512x14336 fp16", _MUL_MAT, 8.95, "TFLOP/s", "llama.cpp", 0.70, _OTHERS),
    Published("M3 Ultra", 60, "GEMM bf16, MPSGraph", _BF16, 19.6, "TFLOP/s", "mlx#3196", 0.05, "", True),
    Published("M3 Ultra", 60, "GEMM bf16, MLX", _BF16, 18.9, "TFLOP/s", "mlx#3196", 0.10),
    Published("M3 Ultra", 80, "GEMM fp16, MLX", _F16, 17.4, "TFLOP/s", "Rapid-MLX#258", 0.55, _OTHERS),
    Published(
        "M2 Ultra", 76, "GEMM 4096 fp32, MLX", _F32, 20.46, "TFLOP/s", "mlx#424", 0.20, f"{_FP32}; cores not said"
    ),
    Published("M5 Max", 40, "GEMM 4096 bf16, no matmul2d", _BF16, 15.3, "TFLOP/s", "mlx#3838", 0.05, "", True),
    Published("M1 Max", 32, "attention d64 fp16", _D64, 86, "% of ALUs", MFA, 0.15),
    Published("M1 Max", 32, "attention d128 fp16", _D128, 85, "% of ALUs", MFA, 0.15),
    Published("M3 Max", 40, "attention d64 fp16", _D64, 94, "% of ALUs", MFA, 0.15, _M3_OR_M4),
    Published("M3 Max", 40, "attention d128 fp16", _D128, 91, "% of ALUs", MFA, 0.15, _M3_OR_M4),
    Published("M3 Ultra", 80, "causal attention d128, MLX", _CAUSAL, 92, "% of matrix", "MLX, 87 to 97", 0.15),
    Published("M3", 10, "layer norm 8192x1024, MLX", _LAYER_NORM, 1040, "us, fenced", MLX_BENCHMARK, 0.15),
    Published("M4 Pro", 20, "layer norm 8192x1024, MLX", _LAYER_NORM, 440, "us, fenced", MLX_BENCHMARK, 0.15),
    Published("M1 Ultra", 48, "layer norm 8192x1024, MLX", _LAYER_NORM, 300, "us, fenced", MLX_BENCHMARK, 0.15),
    Published("M3 Ultra", 80, "rms_norm, one row, MLX", _ROW, 5.2, "us", "mlx#4521", 0.60, "the row is not said"),
)

# Published, and not in the table.
LEFT_OUT = """\
Left out, because there is no equivalent kernel here: matmul2d on M5, quantized products, GEMV, decode attention (its
bandwidths are the `stream_gb_per_s` of some chips), attention backward; or because the machine or the shape is not
said: attention of mlx#1899 and pytorch#181575; or because the CPU's time decides: small rms_norm of torch
(pytorch#145301), GEMM 1280^3 (mlx#3196, mlx#3295)."""


@dataclass(frozen=True)
class Result:
    row: Published
    kernel: str
    predicted: float
    binds: str

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.row.value - 1

    @property
    def as_stated(self) -> bool:
        return abs(self.error) <= self.row.within


def validate(row: Published) -> Result:
    chip = find(row.chip).with_cores(row.gpu_cores)
    dispatch = row.job()
    found = model.predict(dispatch, chip)
    return Result(row, dispatch.name, UNITS[row.unit](found, dispatch, chip), found.binds)


def main() -> int:
    heads = ["chip", "cores", "what", "measured", "predicted", "unit", "error", "stated", "binds", "source", "remark"]
    results = [validate(row) for row in PUBLISHED]
    rows = [heads]
    for result in results:
        row = result.row
        rows.append([row.chip, str(row.gpu_cores), row.what, f"{row.value:g}", f"{result.predicted:.3g}", row.unit])
        remark = "; ".join(filter(None, ("peak" * row.is_peak, row.remark)))
        rows[-1] += [f"{100 * result.error:+.0f}%", f"{100 * row.within:.0f}%", result.binds, row.source, remark]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    free = [result for result in results if not result.row.is_peak]
    typical = sorted(abs(result.error) for result in free)[len(free) // 2]
    beyond = [result.row.what for result in results if not result.as_stated]
    print(f"\nMedian error of the {len(free)} rows that are no peak: {100 * typical:.0f}%")
    print(f"Beyond what is stated: {', '.join(beyond) or 'none'}")
    print("Kernels:", ", ".join(dict.fromkeys(result.kernel for result in results)))
    print(LEFT_OUT)
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
