"""Counts of the norms: every element moves once, whatever is fused."""

import pytest
import torch

import mpskernels
from bench import light
from mpskernels import simulator
from mpskernels.simulator.chips import CHIPS

ops = torch.ops.mpsk
WANTED = (True, True)


def rows(*shape, dtype=torch.float16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to("mps")


def dispatches(call):
    with simulator.profile() as profile:
        call()
        torch.mps.synchronize()
    return profile.dispatches


# op -> how many tensors of the size of x move, how many parameters of the size of a row, the call
FORWARD = {
    "rms_norm": (2, 1, lambda x, w: mpskernels.rms_norm(x, w)),
    "layer_norm": (2, 2, lambda x, w: mpskernels.layer_norm(x, w, w.clone())),
    "add_rms_norm": (4, 1, lambda x, w: mpskernels.add_rms_norm(x, x.clone(), w)),
    "add_layer_norm": (4, 2, lambda x, w: mpskernels.add_layer_norm(x, x.clone(), w, w.clone())),
    "gated_rms_norm": (3, 1, lambda x, w: mpskernels.gated_rms_norm(x, x.clone(), w)),
    "gated_rms_norm_first": (3, 1, lambda x, w: mpskernels.gated_rms_norm(x, x.clone(), w, norm_before_gate=False)),
    "modulated_norm": (2, 4, lambda x, w: mpskernels.modulated_norm(x[None], w[None], 1 * w[None], 1 * w, 1 * w)[0]),
}


@pytest.mark.parametrize(
    ("count", "columns"), [(32, 128), (1000, 128), (32, 1024), (150, 1024), (40, 4096), (12, 16384)]
)
@pytest.mark.parametrize("op", FORWARD)
def test_forward_moves_every_element_once_in_one_launch(op, count, columns):
    tensors, parameters, call = FORWARD[op]
    x, w = rows(count, columns), rows(columns)
    [dispatch] = [d for d in dispatches(lambda: call(x, w)) if d.kernel.startswith("norm_")]
    moved, of_parameters = tensors * x.numel() * 2, parameters * columns * 2
    assert dispatch.device_bytes_unique == moved + of_parameters
    readings, rest = divmod(dispatch.device_bytes - moved, of_parameters)
    assert rest == 0
    assert readings <= count  # of the parameters: one by each part
    assert dispatch.coalescing == 1.0
    assert dispatch.atomics == 0
    if "held=1" in dispatch.kernel:
        rows_of_part = -(-count // readings)
        assert dispatch.barriers <= (1 if "rms" in op else 2) * rows_of_part


# On a chip of 10 cores. One of 80 needs eight times the rows, as it needs eight times the parts.
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "layer_norm"])
@pytest.mark.parametrize("columns", [128, 1024, 4096, 16384])
def test_forward_requests_little_but_what_is_necessary(op, columns):
    norm = light.Norm(op, light.LARGE // columns, columns)
    [dispatch] = light.extrapolated(norm, light.launched(norm))
    assert dispatch.device_bytes_unique == norm.bytes_read + norm.bytes_written
    assert dispatch.device_bytes <= 1.03 * dispatch.device_bytes_unique
    assert "held=1" in dispatch.kernel
    assert dispatch.groups * dispatch.simdgroups_per_threadgroup >= 24 * 8  # of 10 cores, a fifth may be missing


# What cannot be: sums of few long rows are too many bytes, or too few threadgroups leave them, on chips of many cores.
ULTRA = {"M1 Ultra", "M2 Ultra", "M3 Ultra"}
LARGER = {chip.name for chip in CHIPS.values() if chip.gpu_cores > 10} - {"M3 Pro"}
BELOW = {
    "layer_norm_backward 1024x4096": ULTRA,
    "rms_norm_backward 256x16384": ULTRA,
    "layer_norm_backward 256x16384": LARGER,
}


@pytest.mark.parametrize(
    "chips", [("m4", "m4max", "m2ultra"), pytest.param(tuple(CHIPS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_large_norms_reach_nine_tenths_of_the_speed_of_light(chips):
    below = {}
    for chip, found in light.rows_of_chips("norms", [CHIPS[key] for key in chips]).items():
        for row in found:
            if row.job.elements >= light.LARGE and not row.met:
                below.setdefault(str(row.job), set()).add(chip.name)
    names = {CHIPS[key].name for key in chips}
    assert below == {job: on & names for job, on in BELOW.items()}


BACKWARD = {
    "rms_norm": (3, 1, lambda g, x, w: ops.rms_norm_backward(g, x, w, 1e-6, 0.0, *WANTED)),
    "layer_norm": (3, 2, lambda g, x, w: ops.layer_norm_backward(g, x, w, w, 1e-6, *WANTED)),
    "add_rms_norm": (4, 1, lambda g, x, w: ops.add_rms_norm_backward(g, g.clone(), x, w, 1e-6, 0.0, *WANTED)),
    "gated_rms_norm": (5, 1, lambda g, x, w: ops.gated_rms_norm_backward(g, x, g.clone(), w, 1e-6, True, *WANTED)),
}


@pytest.mark.parametrize("columns", [128, 1024, 4096, 8192])
@pytest.mark.parametrize("op", BACKWARD)
def test_backward_moves_every_element_once(op, columns):
    tensors, sums, call = BACKWARD[op]
    count = 64
    g, x, w = rows(count, columns), rows(count, columns), rows(columns)
    first, second = [d for d in dispatches(lambda: call(g, x, w)) if d.kernel.startswith("norm_")]
    moved, partials = tensors * x.numel() * 2, first.groups * sums * columns * 4
    assert first.groups <= 8
    assert first.device_bytes_unique == moved + partials + columns * 2
    readings, rest = divmod(first.device_bytes - moved - partials, columns * 2)  # of the weight: one by each part
    assert rest == 0
    assert "held=1" in first.kernel
    assert readings <= 64
    assert second.device_bytes == partials + sums * columns * 2
    at_once = 32 // max(1, columns // 128)
    of_sums = 2 * sums if at_once > 1 else 0
    assert first.barriers <= 2 * -(-count // (first.groups * max(1, at_once))) + of_sums
    assert second.barriers == 1
    assert first.coalescing == second.coalescing == 1.0
    assert first.atomics == second.atomics == 0


@pytest.mark.parametrize("shape", [(2, 64, 16, 16), (2, 64, 6, 6), (3, 16, 8, 8), (2, 8, 64, 64)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_group_norm_moves_every_element_once(shape, layout):
    x, w, b = rows(*shape).to(memory_format=layout), rows(shape[1]), rows(shape[1])
    found = dispatches(lambda: mpskernels.group_norm(x, 8, w, b, silu=True))
    [dispatch] = [d for d in found if "norm_group" in d.kernel]
    moved, parameters = 2 * x.numel() * 2, 2 * shape[1] * 2
    assert dispatch.device_bytes_unique == moved + parameters
    assert dispatch.device_bytes == moved + shape[0] * parameters  # each group of each sample reads its own
    assert dispatch.device_bytes <= 1.03 * dispatch.device_bytes_unique
    assert dispatch.barriers <= 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_long_groups_are_read_twice(layout):
    x, w, b = rows(1, 32, 64, 72).to(memory_format=layout), rows(32), rows(32)
    found = dispatches(lambda: mpskernels.group_norm(x, 1, w, b))
    first, second = [d for d in found if "norm_group" in d.kernel]
    size, parts, parameters = x.numel() * 2, 9, 2 * 32 * 2
    assert first.device_bytes == first.device_bytes_unique == size + parts * 16
    assert second.device_bytes_unique == 2 * size + parts * 16 + parameters
    assert first.device_bytes + second.device_bytes <= 1.03 * (3 * size + parameters)
    assert first.barriers == 2
    assert second.barriers == 1
