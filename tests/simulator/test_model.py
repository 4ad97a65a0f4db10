"""The model of M1 to M5, on counts worked out by hand, so that it does not lean on the profiler."""

import dataclasses
import itertools
import json
import math
import random
import re
import sys
from pathlib import Path

import pytest
import torch

import mpskernels
from mpskernels import simulator
from mpskernels.simulator import model, profiler, roofline
from mpskernels.simulator.chips import CHIPS, Number, find

ROOT = Path(__file__).resolve().parents[2]
ALL_CHIPS = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)


def counts(**given) -> profiler.Dispatch:
    """A dispatch of those counts, one threadgroup of 32 threads where nothing else is said, and 0 for the rest."""
    zeros = {field.name: 0 for field in dataclasses.fields(profiler.Dispatch)}
    zeros |= {"kernel": "kernel", "threadgroups": (1, 1, 1), "threads_per_threadgroup": (32, 1, 1), "work": ()}
    return profiler.Dispatch(**zeros | given)


def gemm(m: int, n: int, k: int) -> profiler.Dispatch:
    """matmul_tile at 32x64x32 with two simdgroups, on row-major halves, of sizes that are multiples of the tile's."""
    tiles = m // 32 * (n // 64)
    steps = tiles * k // 32  # of all threadgroups: each loads 32x32 of a and 32x64 of b, and multiplies them
    stores = tiles * 2 * 4 * 4  # of a simdgroup, one for each of its fragments: two halves for each lane
    fragments = steps * 2 * 4 * (4 + 4)  # that simdgroups load
    loads = steps * (4 + 8)  # of a simdgroup, of 16 bytes for each lane
    return counts(
        kernel="matmul_tile_f16_bm32_bn64_bk32_wm1_wn2_wk1",
        threadgroups=(tiles, 1, 1),
        threads_per_threadgroup=(32, 2, 1),
        threads=64 * tiles,
        threadgroup_memory=32 * 80 + 64 * 80,  # rows of 80 bytes; b may lie along k
        matrix_flops=2 * m * n * k,
        matrix_operations=m * n * k // 512,
        instructions=steps * 64 * 200,
        simd_instructions=steps * 2 * 200,
        device_read=steps * (32 + 64) * 32 * 2,
        device_written=m * n * 2,
        device_read_unique=(m + n) * k * 2,
        device_written_unique=m * n * 2,
        device_accesses=loads + stores,
        # A load of a takes 64 bytes of each of 8 rows, one of b takes 128 of 4; a store has 16 bytes of 8 rows.
        device_lines=steps * (4 * 8 + 8 * 4) + stores * 8,
        device_lines_ideal=loads * 4 + stores,
        threadgroup_read=fragments * 128,
        threadgroup_written=steps * (32 + 64) * 32 * 2,
        threadgroup_accesses=loads + fragments,
        bank_cycles=loads * 4 + fragments,
        bank_cycles_ideal=loads * 4 + fragments,
        barriers=2 * k // 32,
    )


def rms_norm(rows: int) -> profiler.Dispatch:
    """norm_row on rows of 4096 floats with a weight: 256 threads of 16 columns, in vectors, and sums in pairs."""
    simdgroups = rows * 8
    return counts(
        kernel="norm_row_f32_d8192",
        threadgroups=(rows, 1, 1),
        threads_per_threadgroup=(256, 1, 1),
        threads=rows * 256,
        threadgroup_memory=512,
        instructions=rows * 256 * 200,
        simd_instructions=simdgroups * 200,
        device_read=2 * rows * 4096 * 4,
        device_written=rows * 4096 * 4,
        device_read_unique=(rows + 1) * 4096 * 4,
        device_written_unique=rows * 4096 * 4,
        device_accesses=simdgroups * 12,
        device_lines=simdgroups * 12 * 4,
        device_lines_ideal=simdgroups * 12 * 4,
        threadgroup_read=simdgroups * 8 * 8,
        threadgroup_written=simdgroups * 8,
        threadgroup_accesses=simdgroups * 2,
        bank_cycles=simdgroups * 2,
        bank_cycles_ideal=simdgroups * 2,
        barriers=1,
        simd_operations=simdgroups * 2,
    )


def attention(heads: int, queries: int, keys: int) -> profiler.Dispatch:
    """attention_flash on halves of head dimension 64, without a mask, of multiples of 32 queries and keys."""
    groups = heads * queries // 32
    blocks = groups * keys // 32  # of keys, of all threadgroups
    return counts(
        kernel="attention_flash_f16_d64_bk32",
        threadgroups=(queries // 32, heads, 1),
        threads_per_threadgroup=(32, 4, 1),
        threads=groups * 128,
        threadgroup_memory=9216,
        matrix_flops=4 * 64 * heads * queries * keys,
        matrix_operations=blocks * 4 * 64,
        device_read=(groups + 2 * blocks) * 32 * 64 * 2,
        device_written=heads * queries * 64 * 2,
        device_read_unique=heads * (queries + 2 * keys) * 64 * 2,
        device_written_unique=heads * queries * 64 * 2,
        threadgroup_read=(groups * 4 * 8 + blocks * 4 * 64) * 128,
        threadgroup_written=(groups + 2 * blocks) * 32 * 64 * 2,
        barriers=1 + 2 * keys // 32,
        simd_operations=(blocks + groups) * 4 * 2,
    )


def stream(size: int, threads: int = 256) -> profiler.Dispatch:
    """Reads so many bytes and writes as many, 16 for each thread, with a multiply-add for each 4."""
    groups = size // (16 * threads)
    return counts(
        kernel="stream",
        threadgroups=(groups, 1, 1),
        threads_per_threadgroup=(threads, 1, 1),
        threads=groups * threads,
        f32_flops=size // 2,
        instructions=size,
        simd_instructions=size // 32,
        device_read=size,
        device_written=size,
        device_read_unique=size,
        device_written_unique=size,
        device_accesses=2 * size // 512,
        device_lines=2 * size // 128,
        device_lines_ideal=2 * size // 128,
    )


def test_chips_agree_with_those_that_the_device_stands_for():
    text = (ROOT / "mpskernels/simulator/framework/chips.h").read_text()
    rows = re.findall(r'\{"(\w+)", "([^"]+)", "[^"]+", (\d+), (\d+), \d+, ([\d.]+)\}', text)
    assert len(rows) == len(re.findall(r'^    \{"', text, re.MULTILINE)) == len(CHIPS)
    for key, name, family, cores, bandwidth in rows:
        chip = CHIPS[key]
        assert f"Apple {chip.name}" == name
        assert (chip.core.apple_family, chip.gpu_cores) == (int(family), int(cores))
        assert chip.dram_gb_per_s == float(bandwidth)


@ALL_CHIPS
def test_every_number_of_a_chip_has_its_source(chip):
    for part in (chip, chip.core):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float):
                assert isinstance(value, Number), field.name
                assert len(value.source) > 5, field.name


@ALL_CHIPS
def test_rates_of_a_chip_lie_below_what_its_hardware_could_do(chip):
    assert 0.8 <= chip.matrix_tflops / chip.alu_tflops <= 0.95
    assert 0.75 <= chip.stream_gb_per_s / chip.dram_gb_per_s <= 1
    assert chip.l2_gb_per_s > chip.stream_gb_per_s
    assert (chip.tensor_tflops is not None) == (chip.core.apple_family >= 10)


def test_a_smaller_version_of_a_chip_has_its_share():
    whole = find("M3 Ultra")
    part = whole.with_cores(60)
    assert part.matrix_tflops == pytest.approx(19.6)
    assert part.alu_tflops == pytest.approx(whole.alu_tflops * 0.75)
    assert part.stream_gb_per_s == whole.stream_gb_per_s
    assert "60 of 80 cores" in part.matrix_tflops.source
    assert part.tensor_tflops is None
    assert whole.with_cores(80).matrix_tflops == whole.matrix_tflops


def test_find():
    assert find("M4 Max") is find("m4max") is find("Apple M4 Max") is CHIPS["m4max"]
    assert find(CHIPS["m1"]) is CHIPS["m1"]
    assert find().key == simulator.chip().chip
    with pytest.raises(ValueError, match="no chip 'M9'; there are: M1, M1 Pro, "):
        find("M9")


def test_derived_counts():
    d = counts(
        threadgroups=(3, 5, 2),
        threads_per_threadgroup=(40, 2, 1),
        instructions=48,
        simd_instructions=2,
        matrix_flops=1024,
        f32_flops=3,
        f16_flops=4,
        device_read=10,
        device_written=20,
        device_read_unique=4,
        device_written_unique=5,
        device_lines=8,
        device_lines_ideal=2,
        threadgroup_read=6,
        threadgroup_written=7,
        bank_cycles=9,
        bank_cycles_ideal=6,
    )
    assert (d.groups, d.simdgroups_per_threadgroup, d.flops) == (30, 3, 1031)
    assert (d.active, d.coalescing, d.bank_conflicts) == (0.75, 0.25, 1.5)
    assert (d.device_bytes, d.device_bytes_unique, d.threadgroup_bytes) == (30, 9, 13)
    assert counts(kernel="k_f16?a=0,b=1,c=0,d=12").name == "k_f16?b=1,d=12"
    assert counts(kernel="k_f16?a=0").name == counts(kernel="k_f16").name == "k_f16"
    nothing = counts()
    assert (nothing.active, nothing.coalescing, nothing.bank_conflicts) == (1.0, 1.0, 1.0)


@ALL_CHIPS
def test_a_large_product_is_bound_by_the_matrix_rate(chip):
    found = model.predict(gemm(4096, 4096, 4096), chip, exact_f32=True)
    assert found.binds in ("matrix", "alu")
    assert found.limit == "flops"
    assert 0.95 <= found.fraction <= 1.0
    assert found.speed_of_light == pytest.approx(2 * 4096**3 / (chip.matrix_tflops * 1e12))
    assert found.dram_uncached > found.terms["dram"]


@ALL_CHIPS
def test_a_large_stream_is_bound_by_dram(chip):
    found = model.predict(stream(1 << 26), chip)
    assert found.binds == "dram"
    assert found.limit == "bytes"
    assert found.fraction == pytest.approx(1.0)
    assert found.seconds == pytest.approx((1 << 27) / (chip.stream_gb_per_s * 1e9))


@ALL_CHIPS
def test_a_small_dispatch_is_bound_by_its_launch(chip):
    found = model.predict(stream(4096), chip)
    assert found.binds == "launch"
    assert found.seconds == pytest.approx(chip.launch_us * 1e-6)


def test_matrix_units_of_m5_raise_the_speed_of_light_of_half_precision_only():
    found = [model.predict(gemm(4096, 4096, 4096), find("M5"), exact_f32=exact) for exact in (False, True)]
    assert found[0].seconds == found[1].seconds
    assert found[0].speed_of_light < 0.3 * found[1].speed_of_light


def test_necessary_work_sets_the_speed_of_light_alone():
    dispatch, chip = stream(1 << 26), find("M4")
    usual = model.predict(dispatch, chip)
    half = model.predict(dispatch, chip, necessary_bytes=dispatch.device_bytes_unique / 2)
    assert half.seconds == usual.seconds
    assert half.fraction == pytest.approx(usual.fraction / 2)
    work = model.predict(dispatch, chip, necessary_flops=1e12)
    assert (work.limit, work.speed_of_light) == ("flops", pytest.approx(1 / chip.alu_tflops))


def test_the_busiest_core_decides():
    chip = find("M4")  # 10 cores
    seconds = [model.predict(gemm(32, 64 * tiles, 8192), chip).seconds for tiles in (10, 11, 20)]
    assert seconds[1] == pytest.approx(seconds[2])
    assert seconds[0] <= seconds[1]
    assert model.predict(gemm(32, 64 * 11, 8192), chip).balance == pytest.approx(11 / 20)


@pytest.mark.parametrize(
    ("work", "balance"),
    [
        (((20, 5),), 1),
        (((10, 4), (10, 1)), 1),
        (((12, 4), (32, 1)), 1),  # two cores have two of the large ones, the others one, and four of the small ones
        (((32, 1), (12, 4)), 80 / (10 * 11)),
        (((1, 10), (9, 1)), 19 / 100),
        (((9, 0), (1, 7), (10, 0)), 1 / 10),
        (((11, 1),), 11 / 20),
    ],
    ids=str,
)
def test_each_threadgroup_goes_to_the_core_that_is_free_first(work, balance):
    groups = sum(count for count, _ in work)
    dispatch = dataclasses.replace(gemm(32, 64 * groups, 512), work=work)
    assert model.predict(dispatch, find("M4")).balance == pytest.approx(balance)


def test_dealing_many_threadgroups_at_once_is_dealing_them_one_by_one():
    dice = random.Random(0)
    for _ in range(50):
        cores = dice.choice([1, 3, 10])
        work = tuple((dice.choice([1, 2, 7, 40]), dice.choice([1, 2, 5, 17])) for _ in range(dice.choice([2, 5])))
        loads = [0] * cores
        for count, each in work:
            for _ in range(count):
                loads[loads.index(min(loads))] += each
        chip = dataclasses.replace(find("M4"), gpu_cores=cores)
        dispatch = dataclasses.replace(gemm(32, 64 * sum(count for count, _ in work), 512), work=work)
        assert model.predict(dispatch, chip).balance == pytest.approx(sum(loads) / (cores * max(loads)))


def test_a_large_threadgroup_alone_on_its_core_leaves_latency_uncovered():
    """Two simdgroups hide nothing by themselves, however little work the other threadgroups have."""
    chip = dataclasses.replace(find("M4"), gpu_cores=1)
    alike = dataclasses.replace(gemm(32, 64 * 5, 512), work=((5, 20),))
    unlike = dataclasses.replace(alike, work=((1, 96), (4, 1)))
    assert model.predict(unlike, chip).terms["alu"] > 3 * model.predict(alike, chip).terms["alu"]
    assert model.predict(unlike, chip).terms["matrix"] == pytest.approx(model.predict(alike, chip).terms["matrix"])


def test_occupancy_follows_from_threads_and_threadgroup_memory():
    chip = find("M1")
    assert model.predict(stream(1 << 20, threads=1024), chip).resident == 1
    assert model.predict(stream(1 << 20, threads=256), chip).resident == 3  # 64 registers, of 208 KB
    small = dataclasses.replace(stream(1 << 20, threads=32), threadgroup_memory=30 * 1024)
    found = model.predict(small, chip)
    assert (found.resident, found.occupancy) == (2, pytest.approx(64 / 3072))
    assert model.predict(dataclasses.replace(small, threadgroup_memory=16), chip).resident == 26


def test_too_few_simdgroups_leave_latency_uncovered():
    chip = find("M4 Max")
    few = dataclasses.replace(stream(1 << 22, threads=32), threadgroups=(10, 1, 1))
    many = dataclasses.replace(few, threads_per_threadgroup=(1024, 1, 1))
    assert model.predict(few, chip).terms["dram"] > 2 * model.predict(many, chip).terms["dram"]
    assert model.predict(few, chip).terms["alu"] > 5 * model.predict(many, chip).terms["alu"]


@pytest.mark.parametrize(
    ("change", "term"),
    [
        ({"matrix_operations": 10**6, "matrix_flops": 1024 * 10**6}, "matrix"),
        ({"tensor_flops": 1024 * 10**6}, "matrix"),
        ({"f32_flops": 10**9}, "alu"),
        ({"f16_flops": 10**9}, "alu"),
        ({"special": 10**8}, "alu"),
        ({"integer_operations": 10**10}, "alu"),
        ({"simd_operations": 10**7}, "alu"),
        ({"device_read_unique": 10**9}, "dram"),
        ({"device_lines": 10**8}, "cache"),
        ({"device_lines_ideal": 10**8}, "cache"),
        ({"bank_cycles": 10**8}, "threadgroup"),
        ({"bank_cycles": 10**8, "bank_cycles_ideal": 10**8}, "threadgroup"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value,
)
@pytest.mark.parametrize("key", ["m1", "m4"])
def test_each_count_raises_its_term(key, change, term):
    before = model.predict(stream(1 << 20), find(key))
    after = model.predict(dataclasses.replace(stream(1 << 20), **change), find(key))
    assert after.terms[term] > 3 * before.terms[term]
    others = set(before.terms) - {term, "alu" if term == "matrix" else term}
    if term not in ("cache", "alu"):  # these two also say how much is under way at a time
        assert all(after.terms[other] == before.terms[other] for other in others)


def test_idle_lanes_cost_as_much_as_busy_ones():
    busy = dataclasses.replace(stream(1 << 20), f32_flops=10**9)
    idle = dataclasses.replace(busy, instructions=busy.instructions // 4)
    seconds = [model.predict(dispatch, find("M2")).terms["alu"] for dispatch in (busy, idle)]
    assert seconds[1] == pytest.approx(4 * seconds[0])


def test_integers_issue_beside_floating_point_from_m3_on():
    both = dataclasses.replace(stream(1 << 20), f32_flops=10**9, integer_operations=10**9)
    only = dataclasses.replace(both, integer_operations=0)
    for key, ratio in (("m1", 3.0), ("m2", 3.0), ("m3", 2.0), ("m5", 2.0)):
        found = model.predict(both, find(key)).terms["alu"] / model.predict(only, find(key)).terms["alu"]
        assert found == pytest.approx(ratio)


def test_a_dispatch_without_counts_costs_its_launch():
    for chip in CHIPS.values():
        found = model.predict(counts(), chip)
        assert (found.binds, found.fraction) == ("launch", 0.0)
        assert all(math.isfinite(seconds) for seconds in found.terms.values())


def test_table_has_a_line_for_each_kind_of_dispatch():
    p = profiler.Profile([stream(1 << 24), gemm(512, 512, 512), stream(1 << 24)])
    lines = p.table("M4 Max").splitlines()
    assert lines[0].startswith("3 dispatches, ")
    assert "M4 Max with 40 cores: predicted from counts, not measured" in lines[0]
    assert lines[1].split()[:3] == ["kernel", "times", "threadgroups"]
    assert lines[2].split()[:3] == ["stream", "2", "4096x1x1"]
    assert lines[3].split()[:3] == [gemm(512, 512, 512).kernel, "1", "128x1x1"]
    assert profiler.Profile([]).table("M1").splitlines()[0].startswith("0 dispatches, 0.0 us on M1 ")


def test_json_has_every_count_and_prediction():
    p = profiler.Profile([stream(1 << 20), gemm(512, 512, 512)])
    entries = json.loads(p.json(["M1", "M5 Max"]))["dispatches"]
    assert [entry["kernel"] for entry in entries] == ["stream", gemm(512, 512, 512).kernel]
    for entry, dispatch in zip(entries, p.dispatches, strict=True):
        for field in dataclasses.fields(dispatch):
            value = getattr(dispatch, field.name)
            assert entry[field.name] == (list(value) if isinstance(value, tuple) else value)
        for chip in ("M1", "M5 Max"):
            assert entry["predicted"][chip] == dataclasses.asdict(model.predict(dispatch, find(chip)))
    assert list(json.loads(p.json())["dispatches"][0]["predicted"]) == [find().name]


def test_plot_draws_a_panel_for_each_chip(tmp_path):
    from matplotlib import image

    p = profiler.Profile([stream(1 << 20), gemm(512, 512, 512), counts()])
    p.plot(tmp_path / "one.png", ["M4 Max"])
    p.plot(tmp_path / "two.png", ["M4 Max", "M5"])
    profiler.Profile([]).plot(tmp_path / "none.png")
    one, two = image.imread(tmp_path / "one.png"), image.imread(tmp_path / "two.png")
    assert two.shape[:2] == (one.shape[0], 2 * one.shape[1])
    assert len({tuple(pixel) for pixel in one.reshape(-1, one.shape[-1])}) > 10


def test_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match="needs matplotlib: pip install matplotlib"):
        profiler.Profile([]).plot(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_every_binding_term_has_a_colour():
    assert set(model.predict(counts(), find("M1")).terms) == set(roofline.COLOURS)


def assert_counted(run, by_hand: profiler.Dispatch, inexact: set[str]) -> None:
    """Asserts that the profiler counts what was worked out by hand, but for the fields named, which the compiler has a
    say in."""
    with simulator.profile() as p:
        run()
    [found] = p.dispatches
    assert found.kernel.split("?")[0] == by_hand.kernel
    differ = {
        field.name: (getattr(found, field.name), getattr(by_hand, field.name))
        for field in dataclasses.fields(found)
        if field.name not in inexact and getattr(found, field.name) != getattr(by_hand, field.name)
    }
    assert not differ


# And the label's constants, which are its family's affair.
COMPILERS = {
    "work",
    "kernel",
    "f32_flops",
    "f16_flops",
    "integer_operations",
    "instructions",
    "simd_instructions",
    "constant_read",
}


def test_the_profiler_counts_a_product_as_by_hand():
    a, b = torch.ones(160, 64, dtype=torch.float16).to("mps"), torch.ones(64, 512, dtype=torch.float16).to("mps")
    assert_counted(lambda: mpskernels.matmul(a, b), gemm(160, 512, 64), COMPILERS)


def test_the_profiler_counts_a_norm_as_by_hand():
    x, weight = torch.ones(5, 4096).to("mps"), torch.ones(4096).to("mps")
    assert_counted(lambda: mpskernels.rms_norm(x, weight, 1e-6), rms_norm(5), COMPILERS | {"special"})


def test_the_profiler_counts_attention_as_by_hand():
    q = torch.ones(1, 2, 64, 64, dtype=torch.float16).to("mps")
    k, v = (torch.ones(1, 2, 96, 64, dtype=torch.float16).to("mps") for _ in range(2))
    accesses = {"device_accesses", "device_lines", "device_lines_ideal"}
    accesses |= {"threadgroup_accesses", "bank_cycles", "bank_cycles_ideal"}
    assert_counted(lambda: mpskernels.attention(q, k, v), attention(2, 64, 96), COMPILERS | accesses | {"special"})


def launch() -> None:
    mpskernels.rms_norm(torch.ones(2, 64).to("mps"))


def test_the_profiler_counts_the_work_of_each_threadgroup():
    """Of causal attention, where later queries have more keys; and of experts' rows, which may be none."""
    q = torch.ones(1, 1, 128, 64, dtype=torch.float16).to("mps")
    x, w = torch.ones(160, 64).to("mps"), torch.ones(2, 64, 64).to("mps")
    offsets = torch.tensor([96, 160], dtype=torch.int32).to("mps")
    with simulator.profile() as p:
        mpskernels.attention(q, q, q, is_causal=True)
        mpskernels.grouped_matmul(x, w, offsets)
    causal, grouped = (d.work for d in p.dispatches)
    assert [count for count, _ in causal] == [1, 1, 1, 1]
    amounts = [work for _, work in causal]
    for earlier, later in itertools.pairwise(amounts):  # 64 multiplications by each of 4 simdgroups, for 32 keys more
        assert 64 * 4 * 16 < abs(later - earlier) < 1.5 * 64 * 4 * 16
    for d in p.dispatches:
        assert sum(count for count, _ in d.work) == d.groups
    assert grouped[-1][1] < grouped[0][1] / 2  # threadgroups that no group needs


def test_profile_counts_its_block_alone_and_in_order():
    launch()
    with simulator.profile() as p:
        launch()
        mpskernels.matmul(torch.ones(3, 8).to("mps"), torch.ones(8, 5).to("mps"))
        assert p.dispatches == []
    launch()
    assert [dispatch.kernel.split("_")[0] for dispatch in p.dispatches] == ["norm", "matmul"]
    with simulator.profile() as again:
        launch()
    assert again.dispatches == p.dispatches[:1]


def test_profile_is_not_nested_and_survives_an_exception():
    p = profiler.Profile()

    def fail() -> None:
        with simulator.profile() as found:
            p.dispatches = found.dispatches
            launch()
            with pytest.raises(RuntimeError, match="counting already"), simulator.profile():
                pass
            launch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(p.dispatches) == 2
    with simulator.profile() as p:
        launch()
    assert len(p.dispatches) == 1


def test_profile_and_check_at_once():
    with simulator.check() as report, simulator.profile() as p:
        launch()
    assert report.findings == []
    assert len(p.dispatches) == 1
    assert not any(simulator._simulator.watching()[:2])
