"""How near the speed of light our kernels are predicted to come, on M1 to M5, on the sizes that real models have.

    python -m bench.light                 a summary for every chip
    python -m bench.light --chip m4       every size on one chip as well
    python -m bench.light --dtype f32     float32, or bf16, instead of float16
    python -m bench.light --only m4 m2    no other chips, and no norms: quick enough to try things out
    python -m bench.light --plot FILE     a picture of it

Nothing is measured: the times are the model's (mpskernels.simulator.model), from counts of work. The counts are exact.
Sizes as large as these are not run as a whole. The op launches its real grid, as the selection table wants it on a chip
of so many cores; of the threadgroups that are alike, one runs and counts for all. Tiles in the last row or column of
tiles that are not full, the last split of k, and the last rows of a norm are kinds of their own.
tests/simulator/test_light.py holds this against whole runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mpskernels._ops import ops
from mpskernels.simulator import profile
from mpskernels.simulator.chips import CHIPS, Chip
from mpskernels.simulator.model import Prediction, predict
from mpskernels.simulator.profiler import Dispatch

GOALS = {"flops": 0.85, "bytes": 0.90}  # by what sets the speed of light
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
BAND = 8  # rows of tiles that the kernels walk together
NO_THREADGROUP = 1 << 62
LARGE = 1 << 22  # elements from which on a norm is to reach the goal
HEAD = """\
{dtype}; predicted from exact counts, nothing measured. Speed of light is at the matrix rate and the bandwidth that the
best published kernel has reached on that chip; on M5 the rate is that of its matrix units, in float32 that of
simdgroup_matrix. Out of reach are sizes whose speed of light is so short that a single launch takes longer than the
goal allows."""

LANGUAGE = (1, 4, 16, 128, 512, 4096)  # rows: decoding, prompts
TRAINED = 128  # rows from which on gradients are asked for
# model -> rows, (outputs, inputs) of its linear layers, and of its gated pairs. Without output heads.
MODELS: dict[str, tuple[tuple[int, ...], list[tuple[int, int]], list[tuple[int, int]]]] = {
    "Llama 3 8B": (LANGUAGE, [(4096, 4096), (1024, 4096), (4096, 14336)], [(14336, 4096)]),
    "Qwen3 0.6B": (LANGUAGE, [(2048, 1024), (1024, 1024), (1024, 2048), (1024, 3072)], [(3072, 1024)]),
    "Qwen3 4B": (LANGUAGE, [(4096, 2560), (1024, 2560), (2560, 4096), (2560, 9728)], [(9728, 2560)]),
    "Gemma 3 4B": (LANGUAGE, [(2048, 2560), (1024, 2560), (2560, 2048), (2560, 10240)], [(10240, 2560)]),
    "Whisper large": ((1, 4, 16, 1500), [(1280, 1280), (5120, 1280), (1280, 5120)], []),
    "SDXL 64x64": ((8192,), [(640, 640), (640, 2560)], [(2560, 640)]),
    "SDXL 32x32": ((2048,), [(1280, 1280), (1280, 5120)], [(5120, 1280)]),
    "SDXL text": ((154,), [(640, 2048), (1280, 2048)], []),
    "ViT-L": ((197, 1576), [(1024, 1024), (4096, 1024), (1024, 4096)], []),
}


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of (m, k) and (k, n), or two of them, as `op` makes it."""

    model: str
    op: str  # linear, gated_linear; their gradients: of_x, of_gated_x, of_weight
    m: int
    n: int
    k: int
    dtype: str = "f16"

    def __str__(self) -> str:
        return f"{self.model} {self.op} {self.m}x{self.n}x{self.k}"

    @property
    def pairs(self) -> int:
        """Products that are one in the end."""
        return 2 if "gated" in self.op else 1

    @property
    def flops(self) -> int:
        return 2 * self.pairs * self.m * self.n * self.k

    @property
    def bytes_read(self) -> int:
        a = self.m * self.k * (2 if self.op == "of_gated_x" else 1)
        return DTYPES[self.dtype].itemsize * (a + self.pairs * self.k * self.n)

    @property
    def bytes_written(self) -> int:
        return DTYPES[self.dtype].itemsize * self.m * self.n

    def left_to_sum(self, dispatches: list[Dispatch]) -> tuple[int, int]:
        """Bytes of out that a second dispatch writes, where splits of k leave it some, and those that it reads."""
        grid = Grid.of(self, dispatches)
        elements = self.m * max(self.n - grid.whole_columns * grid.bn, 0)
        sums = grid.splits * (2 if self.op == "gated_linear" else 1)
        return DTYPES[self.dtype].itemsize * elements, 4 * sums * elements

    def run(self) -> None:
        """On memory without a value: what the kernels do does not depend on it."""
        m, n, k = self.m, self.n, self.k

        def empty(*sizes: int) -> torch.Tensor:
            return _empty(self.dtype, *sizes)

        match self.op:
            case "linear":
                ops.linear(empty(m, k), empty(n, k))
            case "gated_linear":
                ops.gated_linear(empty(m, k), empty(n, k), empty(n, k))
            case "of_x":
                ops.matmul(empty(m, k), empty(k, n))
            case "of_gated_x":
                ops.add_matmuls(empty(m, k), empty(k, n), empty(m, k), empty(k, n))
            case "of_weight":
                ops.matmul(empty(k, m).t(), empty(k, n))


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm of rows, or its gradients."""

    op: str
    rows: int
    columns: int
    dtype: str = "f16"

    def __str__(self) -> str:
        return f"{self.op} {self.rows}x{self.columns}"

    flops = 0

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def tensors(self) -> tuple[int, int, int, int]:
        """Of the size of x, that are read and that are written; parameters likewise."""
        return {
            "rms_norm": (1, 1, 1, 0),
            "add_rms_norm": (2, 2, 1, 0),
            "layer_norm": (1, 1, 2, 0),
            "rms_norm_backward": (2, 1, 1, 1),
            "layer_norm_backward": (2, 1, 1, 2),
        }[self.op]

    @property
    def bytes_read(self) -> int:
        read, _, parameters, _ = self.tensors
        return DTYPES[self.dtype].itemsize * (read * self.elements + parameters * self.columns)

    @property
    def bytes_written(self) -> int:
        return DTYPES[self.dtype].itemsize * (self.tensors[1] * self.elements + self.tensors[3] * self.columns)

    def left_to_sum(self, dispatches: list[Dispatch]) -> tuple[int, int]:
        """Bytes of gradients that a second dispatch writes, where there is one, and those that it reads."""
        elements = self.tensors[3] * self.columns
        return DTYPES[self.dtype].itemsize * elements, 4 * elements * dispatches[0].groups

    def run(self) -> None:
        x, y = (_empty(self.dtype, self.rows, self.columns) for _ in range(2))
        weight, bias = (_empty(self.dtype, self.columns) for _ in range(2))
        match self.op:
            case "rms_norm":
                ops.rms_norm(x, weight, 1e-6)
            case "add_rms_norm":
                ops.add_rms_norm(x, y, weight, 1e-6)
            case "layer_norm":
                ops.layer_norm(x, weight, bias, 1e-5)
            case "rms_norm_backward":
                ops.rms_norm_backward(x, y, weight, 1e-6, 0.0, True, True)
            case "layer_norm_backward":
                ops.layer_norm_backward(x, y, weight, bias, 1e-5, True, True)


def products(dtype: str = "f16") -> list[Product]:
    found = []
    for model, (all_rows, linear, gated) in MODELS.items():
        for rows in all_rows:
            for op, layers in (("linear", linear), ("gated_linear", gated)):
                for n, k in layers:
                    found.append(Product(model, op, rows, n, k, dtype))
                    if rows >= TRAINED:
                        of_x = "of_gated_x" if op == "gated_linear" else "of_x"
                        found.append(Product(model, of_x, rows, k, n, dtype))
                        found.append(Product(model, "of_weight", n, k, rows, dtype))
    return found


def norms(dtype: str = "f16") -> list[Norm]:
    """Of 2^22 elements, from which on the goal holds, at all widths of rows; and of fewer."""
    all_ops = ("rms_norm", "add_rms_norm", "layer_norm", "rms_norm_backward", "layer_norm_backward")
    sizes = [(LARGE // columns, columns) for columns in (128, 1024, 4096, 16384)]
    sizes += [(512, 1024), (128, 1024), (1, 4096)]
    return [Norm(op, *size, dtype) for op in all_ops for size in sizes]


JOBS = {"products": products, "norms": norms}


def _empty(dtype: str, *sizes: int) -> torch.Tensor:
    return torch.empty(sizes, dtype=DTYPES[dtype], device="mps")


def launched(job: Product | Norm) -> list[Dispatch]:
    """Its dispatches, without what they count: no threadgroup runs."""
    with profile(only=NO_THREADGROUP) as p:
        job.run()
    return p.dispatches


def extrapolated(job: Product | Norm, dispatches: list[Dispatch]) -> list[Dispatch]:
    """What a profile of `job`, which launches `dispatches`, would hold, from one threadgroup of each kind."""
    result = []
    finished, sums = job.left_to_sum(dispatches)
    for i, whole in enumerate(dispatches):
        if isinstance(job, Product) and i == 0:
            grid = Grid.of(job, dispatches)
            kind = [grid.kind(group) for group in range(whole.groups)]
        else:
            kind = [(group == whole.groups - 1,) for group in range(whole.groups)]
        work: dict[tuple[bool, ...], int] = {}
        counts: Counter[str] = Counter()
        barriers = 0
        for alike, count in Counter(kind).items():
            with profile(only=kind.index(alike)) as p_one:
                job.run()
            one = p_one.dispatches[i]
            barriers = max(barriers, one.barriers)
            work[alike] = sum(groups * each for groups, each in one.work)
            for name in _SUMMED:
                counts[name] += count * getattr(one, name)
        if len(dispatches) == 1:
            read, written = job.bytes_read, job.bytes_written
        elif i == 0:
            read, written = job.bytes_read, job.bytes_written - finished + sums
        else:
            read, written = sums, finished
        unique = {"device_read_unique": read, "device_written_unique": written, "barriers": barriers}
        runs = tuple((len(list(run)), each) for each, run in itertools.groupby(work[alike] for alike in kind))
        result.append(dataclasses.replace(whole, work=runs, **counts, **unique))
    return result


_OF_THE_GRID = {"kernel", "threadgroups", "threads_per_threadgroup", "threads", "threadgroup_memory"}
_NO_SUM = {"barriers", "device_read_unique", "device_written_unique", "work"}
_SUMMED = [field.name for field in dataclasses.fields(Dispatch) if field.name not in _OF_THE_GRID | _NO_SUM]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which part of a product each threadgroup of its first dispatch makes."""

    m: int
    n: int
    bm: int
    bn: int
    rows: int  # of tiles
    columns: int
    whole_columns: int  # before those whose k is split
    splits: int

    @classmethod
    def of(cls, product: Product, dispatches: list[Dispatch]) -> Grid:
        m, n = product.m, product.n
        size = {key: int(value) for key, value in re.findall(r"_(bm|bn|r)(\d+)", dispatches[0].kernel)}
        skinny = "bm" not in size
        bm = size["r"] if skinny else size["bm"]
        x, y, _ = dispatches[0].threadgroups
        rows = math.ceil(m / bm)
        columns = x // rows if skinny else math.ceil(n / size["bn"])
        bn = math.ceil(n / columns) if skinny else size["bn"]
        whole, splits = columns, 1
        if len(dispatches) == 2 and skinny:
            whole, splits = 0, y
        elif len(dispatches) == 2:
            threads = math.prod(dispatches[1].threads_per_threadgroup)
            added_up = [math.ceil(m * (n - whole * bn) / threads) for whole in range(columns)]
            whole = added_up.index(dispatches[1].groups)
            splits = (x // rows - whole) // (columns - whole)
        return cls(m, n, bm, bn, rows, columns, whole, splits)

    def kind(self, group: int) -> tuple[bool, ...]:
        """What tells threadgroups apart: the last row and column of tiles, where not full, and k, where it is split."""
        tile, split = group, 0
        columns, first_column = self.columns, 0
        if self.splits > 1:
            split_tiles = self.rows * (self.columns - self.whole_columns)
            in_split, columns = group - self.rows * self.whole_columns, self.whole_columns
            if in_split >= 0:
                split, tile = divmod(in_split, split_tiles)
                columns, first_column = self.columns - self.whole_columns, self.whole_columns
        band = tile // (BAND * columns) * BAND
        rows_in_band = min(BAND, self.rows - band)
        column, row = divmod(tile - band * columns, rows_in_band)
        partial_row = self.m % self.bm != 0 and band + row == self.rows - 1
        partial_column = self.n % self.bn != 0 and first_column + column == self.columns - 1
        return partial_row, partial_column, first_column + column >= self.whole_columns, split == self.splits - 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A product or norm on a chip."""

    job: Product | Norm
    kernel: str
    threadgroups: int
    limit: str  # what sets the speed of light: flops or bytes
    binds: str  # what takes the most time of the dispatch that takes the most
    fraction: float  # the speed of light over the predicted time of all dispatches
    launch: float  # the dispatches' launches over the predicted time
    attainable: float  # the speed of light over the time of one launch: `fraction` is no more than that

    @property
    def met(self) -> bool:
        return self.fraction >= GOALS[self.limit]

    @property
    def out_of_reach(self) -> bool:
        return self.attainable < GOALS[self.limit]


def row_of(job: Product | Norm, dispatches: list[Dispatch], chip: Chip) -> Row:
    necessary = job.bytes_read + job.bytes_written
    each: list[Prediction] = [
        predict(
            dispatch,
            chip,
            necessary_flops=job.flops,
            necessary_bytes=necessary,
            exact_f32=job.dtype == "f32",
        )
        for dispatch in dispatches
    ]
    seconds = sum(prediction.seconds for prediction in each)
    longest = max(range(len(each)), key=lambda i: each[i].seconds)
    return Row(
        job=job,
        kernel=dispatches[longest].kernel.partition("?")[0],
        threadgroups=dispatches[longest].groups,
        limit=each[0].limit,
        binds=each[longest].binds,
        fraction=each[0].speed_of_light / seconds,
        launch=sum(prediction.terms["launch"] for prediction in each) / seconds,
        attainable=each[0].speed_of_light / each[0].terms["launch"],
    )


def geometric_mean(rows: list[Row]) -> float:
    return math.exp(math.fsum(math.log(row.fraction) for row in rows) / len(rows))


# --- Counts, each chip's in a process of its own, as a process simulates one chip ---


def count(jobs: list[Product] | list[Norm], shared: Path) -> list[list[dict]]:
    """What another process has counted of the same grids lies in the folder `shared`."""
    found = []
    for job in jobs:
        dispatches = launched(job)
        grids = f"{job}{[(d.kernel, d.threadgroups) for d in dispatches]}"
        known = shared / hashlib.sha256(grids.encode()).hexdigest()
        if known.exists():
            found.append(json.loads(known.read_text()))
            continue
        found.append([dataclasses.asdict(dispatch) for dispatch in extrapolated(job, dispatches)])
        partly = known.with_suffix(f".{os.getpid()}")
        partly.write_text(json.dumps(found[-1]))
        partly.rename(known)
    return found


def grids_of(chip: Chip) -> str:
    """The chip for which the glue chooses the same grids: its family, from M3 on, and its number of cores are all it
    knows."""

    def known(c: Chip) -> tuple[int, int]:
        return max(c.core.apple_family, 8), c.gpu_cores

    return next(c.key for c in CHIPS.values() if known(c) == known(chip))


def rows_of_chips(what: str, chips: Iterable[Chip] = CHIPS.values(), dtype: str = "f16") -> dict[Chip, list[Row]]:
    """What is predicted of all "products" or "norms" on each chip."""
    jobs = JOBS[what](dtype)

    def child(key: str) -> list[list[Dispatch]]:
        environment = os.environ | {"MPSK_SIMULATE": key, "MPSK_THREADS": "1"}
        command = [sys.executable, "-m", "bench.light", "--dtype", dtype, "--count", what, shared]
        text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        tuples = ("threadgroups", "threads_per_threadgroup", "work")
        return [
            [Dispatch(**d | {name: tuple(d[name]) for name in tuples}) for d in dispatches]
            for dispatches in json.loads(text)
        ]

    keys = list(dict.fromkeys(grids_of(chip) for chip in chips))
    with tempfile.TemporaryDirectory() as shared, ThreadPoolExecutor(2) as pool:
        counted = dict(zip(keys, pool.map(child, keys), strict=True))
    return {
        chip: [row_of(job, found, chip) for job, found in zip(jobs, counted[grids_of(chip)], strict=True)]
        for chip in chips
    }


# --- Tables ---


def table(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def summary(rows: dict[Chip, list[Row]]) -> str:
    """A line for each chip and each limit: how many reach the goal, how many cannot, the geometric mean, the worst."""
    lines = [["chip", "limit", "goal", "reached", "out of reach", "geo. mean", "worst", "", "binds", "threadgroups"]]
    for chip, found in rows.items():
        for limit, goal in GOALS.items():
            if of_limit := [row for row in found if row.limit == limit]:
                worst = min(of_limit, key=lambda row: row.fraction)
                reached = f"{sum(row.met for row in of_limit)}/{len(of_limit)}"
                out = str(sum(row.out_of_reach for row in of_limit))
                mean = f"{geometric_mean(of_limit):.3f}"
                cells = [f"{worst.fraction:.3f}", str(worst.job), worst.binds, str(worst.threadgroups)]
                lines.append([chip.name, limit, f"{goal:.2f}", reached, out, mean, *cells])
    return table(lines)


def details(rows: list[Row]) -> str:
    """A line for each row."""
    lines = [["", "of light", "limit", "goal", "binds", "launch", "threadgroups", "kernel"]]
    for row in rows:
        goal = (
            "reached" if row.met else "out of reach" if row.out_of_reach else f"{row.fraction - GOALS[row.limit]:+.3f}"
        )
        cells = [row.binds, f"{row.launch:.2f}", str(row.threadgroups), row.kernel]
        lines.append([str(row.job), f"{row.fraction:.3f}", row.limit, goal, *cells])
    return table(lines)


def plot(rows: dict[Chip, list[Row]], dtype: str, path: Path) -> None:
    """Every row as a point, by chip; compute-bound ones left, memory-bound ones right.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    from mpskernels.simulator.roofline import COLOURS, require_matplotlib

    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (limit, goal) in zip(figure.subplots(1, 2, sharey=True), GOALS.items(), strict=True):
        for binds, colour in COLOURS.items():
            points = [
                (row.fraction, y + 0.6 * (i / len(found) - 0.5))
                for y, found in enumerate(rows.values())
                for i, row in enumerate(found)
                if row.limit == limit and row.binds == binds
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), s=4, color=colour, label=f"{binds} binds")
        axes.axvline(goal, color="0.4", lw=1, ls="--")
        axes.set(xlim=(0, 1.05), xlabel=f"fraction of the speed of light, set by {limit} (goal {goal})")
        axes.legend(fontsize=7, loc="lower left")
        axes.set_yticks(range(len(rows)), [chip.name for chip in rows])
    figure.suptitle(f"{dtype} products of real models: a model's predictions, nothing measured")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, help="print every size on this chip as well")
    parser.add_argument("--only", choices=CHIPS, nargs="+", metavar="CHIP", help="these chips alone, and no norms")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture into FILE")
    parser.add_argument("--count", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    dtype = asked.dtype
    if asked.count:
        what, shared = asked.count
        json.dump(count(JOBS[what](dtype), Path(shared)), sys.stdout)
        return 0
    keys = dict.fromkeys([*asked.only, *([asked.chip] if asked.chip else [])]) if asked.only else CHIPS
    chips = [CHIPS[key] for key in keys]
    of_products = rows_of_chips("products", chips, dtype)
    print(HEAD.format(dtype=dtype))
    print(f"\nProducts: {len(products())} sizes\n{summary(of_products)}")
    of_norms: dict[Chip, list[Row]] = {chip: [] for chip in chips}
    if not asked.only:
        of_norms = rows_of_chips("norms", chips, dtype)
        print_norms(of_norms)
    if asked.chip:
        chip = CHIPS[asked.chip]
        print(f"\n{chip.name}\n{details(of_products[chip] + of_norms[chip])}")
    if asked.plot:
        plot(of_products, dtype, asked.plot)
    return 0


def print_norms(rows: dict[Chip, list[Row]]) -> None:
    def part(large: bool, backward: bool | None) -> dict[Chip, list[Row]]:
        return {
            chip: [
                row
                for row in found
                if (row.job.elements >= LARGE) == large and backward in (None, row.job.op.endswith("_backward"))
            ]
            for chip, found in rows.items()
        }

    print(f"\nNorms of 2^22 elements\n{summary(part(large=True, backward=False))}")
    print(f"\nGradients of norms of 2^22 elements\n{summary(part(large=True, backward=True))}")
    print("\nNorms of fewer: the launches' share of the time, at its largest and over all")
    lines = [["chip", "largest", "", "smallest", "of light, geo. mean"]]
    for chip, found in part(large=False, backward=None).items():
        worst, least = max(found, key=lambda row: row.launch), min(row.launch for row in found)
        cells = [f"{worst.launch:.2f}", str(worst.job), f"{least:.2f}", f"{geometric_mean(found):.3f}"]
        lines.append([chip.name, *cells])
    print(table(lines))


if __name__ == "__main__":
    sys.exit(main())
