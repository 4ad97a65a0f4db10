"""bench/light.py: counts from one threadgroup of each kind are those of a whole run."""

import dataclasses

import pytest
import torch

from bench import light
from mpskernels import simulator
from mpskernels.simulator.chips import CHIPS, find

# Tiles in two bands and not full at either edge, with gaps in the last; few rows; k in splits of unequal lengths, of
# all columns of tiles or of the last.
PRODUCTS = [
    light.Product("", op, m, n, k)
    for op, m, n, k in [
        ("linear", 291, 200, 64),
        ("linear", 16, 136, 1600),
        ("linear", 17, 32, 8192),
        ("linear", 17, 192, 2048),
        ("linear", 1, 200, 1104),
        ("gated_linear", 130, 72, 1088),
        ("gated_linear", 4, 72, 256),
        ("gated_linear", 33, 512, 512),
        ("of_x", 197, 136, 96),
        ("of_gated_x", 130, 192, 1100),
        ("of_weight", 128, 192, 1576),
    ]
]

# Parts that share a threadgroup, the last of fewer rows or of none; a threadgroup for each part; no parameters kept.
NORMS = [
    light.Norm(op, rows, columns)
    for op in ("rms_norm", "add_rms_norm", "layer_norm", "rms_norm_backward", "layer_norm_backward")
    for rows, columns in ((531, 128), (67, 1024), (5, 16384))
]


def extrapolated(product):
    return light.extrapolated(product, light.launched(product))


@pytest.mark.parametrize("product", PRODUCTS + NORMS, ids=lambda product: str(product).strip().replace(" ", "-"))
def test_extrapolated_counts_are_those_of_a_whole_run(product):
    with simulator.profile() as p:
        product.run()
    assert extrapolated(product) == p.dispatches


def test_products_here_split_k_and_have_edges():
    found = [extrapolated(product) for product in PRODUCTS]
    grids = [light.Grid.of(*both) for both in zip(PRODUCTS, found, strict=True)]
    assert {(grid.splits > 1, grid.whole_columns > 0) for grid in grids} == {(False, True), (True, False), (True, True)}
    assert {len(dispatches) for dispatches in found} == {1, 2}
    kernels = {dispatches[0].kernel.partition("_f16")[0] for dispatches in found}
    assert {"matmul_tile", "matmul_gated", "matmul_skinny_k"} <= kernels
    tall = found[0][0]
    assert tall.groups > light.BAND  # more than one band of rows


def test_only_runs_one_threadgroup():
    x = torch.ones(70, 4096).to("mps")
    out = []
    for only in (0, 69, 70, light.NO_THREADGROUP):
        with simulator.profile(only=only) as p:
            light.ops.rms_norm(x, None, 1e-6)
        out.append(p.dispatches[0])
    assert [dispatch.threadgroups for dispatch in out] == [(70, 1, 1)] * 4
    assert [dispatch.device_written for dispatch in out] == [16384, 16384, 0, 0]
    with simulator.profile() as p:
        light.ops.rms_norm(x, None, 1e-6)
    assert p.dispatches[0].device_written == 70 * 16384


def test_only_is_refused_under_check():
    with (
        simulator.check(),
        pytest.raises(RuntimeError, match="check would report"),
        simulator.profile(only=0),
    ):
        pass


def test_list_is_complete():
    products = light.products()
    assert len(set(products)) == len(products)
    assert {product.model for product in products} == set(light.MODELS)
    for model in ("Llama 3 8B", "Qwen3 0.6B", "Qwen3 4B", "Gemma 3 4B"):
        forward = {p.m for p in products if p.model == model and p.op == "linear"}
        assert forward == {1, 4, 16, 128, 512, 4096}
        assert {p.op for p in products if p.model == model} == {
            "linear",
            "gated_linear",
            "of_x",
            "of_gated_x",
            "of_weight",
        }
    for dtype in light.DTYPES:
        assert {product.dtype for product in light.products(dtype)} == {dtype}
        assert len(light.products(dtype)) == len(products)


def test_chips_share_counts_only_where_the_glue_cannot_tell_them_apart():
    for chip in CHIPS.values():
        alike = find(light.grids_of(chip))
        assert alike.gpu_cores == chip.gpu_cores
        assert max(alike.core.apple_family, 8) == max(chip.core.apple_family, 8)
    assert light.grids_of(find("m4")) == light.grids_of(find("m3"))
    assert len({light.grids_of(find(key)) for key in ("m2", "m4", "m5")}) == 3


def test_a_row_is_out_of_reach_where_one_launch_takes_longer_than_the_goal_allows():
    chip = find("m3ultra")
    job = light.Product("", "linear", 1, 256, 256)
    row = light.row_of(job, extrapolated(job), chip)
    assert row.out_of_reach
    assert not row.met
    assert row.attainable == pytest.approx((job.bytes_read + job.bytes_written) / 737.1e9 / 2.6e-6)
    assert row.fraction <= row.attainable
    job = light.Product("", "linear", 1, 4096, 4096)
    assert not light.row_of(job, extrapolated(job), chip).out_of_reach
    assert " 1 " in light.summary({chip: [row]}).splitlines()[1]
    assert "out of reach" in light.details([row])


def test_float32_is_held_against_simdgroup_matrix_on_m5():
    chip = find("m5")
    sizes = ("linear", 512, 512, 512)
    job, half = light.Product("", *sizes, dtype="f32"), light.Product("", *sizes)
    found = extrapolated(job)
    flops = 2 * 512**3
    assert light.row_of(job, found, chip).attainable == pytest.approx(flops / (chip.matrix_tflops * 1e12) / 2.6e-6)
    assert light.row_of(half, found, chip).attainable < light.row_of(job, found, chip).attainable
    assert job.bytes_read == 2 * half.bytes_read


def test_tables_name_the_worst_row_and_the_mean():
    jobs = [light.Product("a", "linear", 4096, 4096, 4096), light.Product("b", "linear", 1, 4096, 4096)]
    found = [extrapolated(job) for job in jobs]
    chip = find("m4")
    rows = [light.row_of(job, dispatches, chip) for job, dispatches in zip(jobs, found, strict=True)]
    assert [row.limit for row in rows] == ["flops", "bytes"]
    flops, read = 2 * 4096**3, 2 * (4096 + 4096 * 4096 + 4096)
    assert jobs[0].flops == flops
    assert jobs[1].bytes_read + jobs[1].bytes_written == read
    light_of_first = flops / (chip.matrix_tflops * 1e12)
    [prediction] = [light.predict(d, chip) for d in found[0]]
    assert rows[0].fraction == pytest.approx(light_of_first / prediction.seconds)
    text = light.summary({chip: [*rows, dataclasses.replace(rows[0], fraction=rows[0].fraction / 4)]})
    line = next(line for line in text.splitlines() if "flops" in line)
    assert f"{rows[0].fraction / 2:.3f}" in line  # the geometric mean of it and a quarter of it
    assert f"{rows[0].fraction / 4:.3f}" in line
    assert len(light.details(rows).splitlines()) == 3
