"""The model's predictions stay as close to what others have measured as its table says."""

import dataclasses

import pytest
import torch

import mpskernels
from mpskernels import simulator
from mpskernels.simulator import profiler, validation
from mpskernels.simulator.chips import CHIPS, find


def test_predictions_are_off_by_no_more_than_stated(capsys):
    assert validation.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["chip", "cores"]
    assert [line.split("  ")[0] for line in lines[1:-1] if line.startswith("M")][: len(validation.PUBLISHED)] == [
        row.chip for row in validation.PUBLISHED
    ]
    assert "Beyond what is stated: none" in lines

    results = [validation.validate(row) for row in validation.PUBLISHED]
    # A bound that nothing comes near says nothing.
    loose = [(r.row.chip, r.row.what, r.error, r.row.within) for r in results if r.row.within > abs(r.error) + 0.2]
    assert not loose


def test_the_table_is_complete():
    rows = validation.PUBLISHED
    assert {find(row.chip).core.apple_family for row in rows} == {7, 8, 9, 10}
    assert {row.job().kernel.split("_")[0] for row in rows} == {"matmul", "attention", "norm"}
    assert len({(row.chip, row.gpu_cores, row.what) for row in rows}) == len(rows)
    for row in rows:
        assert row.source
        assert row.gpu_cores <= find(row.chip).gpu_cores
        assert row.unit in validation.UNITS
        assert row.remark or row.within <= 0.15, f"{row.what} on {row.chip} is far off and says not why"
    # Every published matrix rate that the chips' table takes is a row, marked as one that set a rate.
    published = {chip.name for chip in CHIPS.values() if "of the peak, as on" not in chip.matrix_tflops.source}
    assert {row.chip for row in rows if row.is_peak} == published


def test_a_grown_grid_counts_as_the_whole_would():
    a, b = torch.ones(1280, 64).to("mps"), torch.ones(64, 2048).to("mps")
    with simulator.profile() as p:
        mpskernels.matmul(a[:640], b)
        mpskernels.matmul(a, b)
    part, whole = p.dispatches
    grown = validation.grown(part, whole.groups, read=(1280 + 2048) * 64 * 4, written=1280 * 2048 * 4)
    for field in dataclasses.fields(profiler.Dispatch):
        if field.name not in ("threadgroups", "integer_operations", "instructions", "simd_instructions", "work"):
            assert getattr(grown, field.name) == getattr(whole, field.name), field.name
    for name in ("integer_operations", "instructions", "simd_instructions"):  # the index arithmetic of bands of tiles
        assert getattr(grown, name) == pytest.approx(getattr(whole, name), rel=0.01)
