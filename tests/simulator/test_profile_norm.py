"""Counts of the norms: every element moves once, whatever is fused."""

import pytest
import torch

import mpskernels
from mpskernels import simulator

ops = torch.ops.mpsk
WANTED = (True, True)


def rows(*shape, dtype=torch.float16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to("mps")


def dispatches(call):
    with simulator.profile() as profile:
        call()
        torch.mps.synchronize()
    return profile.dispatches


# op -> how many tensors of the size of x move, how many parameters of the size of a row are read by each row, the call
FORWARD = {
    "rms_norm": (2, 1, lambda x, w: mpskernels.rms_norm(x, w)),
    "layer_norm": (2, 2, lambda x, w: mpskernels.layer_norm(x, w, w)),
    "add_rms_norm": (4, 1, lambda x, w: mpskernels.add_rms_norm(x, x.clone(), w)),
    "add_layer_norm": (4, 2, lambda x, w: mpskernels.add_layer_norm(x, x.clone(), w, w)),
    "gated_rms_norm": (3, 1, lambda x, w: mpskernels.gated_rms_norm(x, x.clone(), w)),
}


@pytest.mark.parametrize("columns", [128, 1024, 2048, 4096])
@pytest.mark.parametrize("op", FORWARD)
def test_forward_moves_every_element_once_in_one_launch(op, columns):
    tensors, parameters, call = FORWARD[op]
    x, w = rows(32, columns), rows(columns)
    [dispatch] = [d for d in dispatches(lambda: call(x, w)) if d.kernel.startswith("norm_")]
    moved = tensors * x.numel() * 2
    read_by_each_row = parameters * x.numel() * 2
    assert dispatch.device_bytes_unique == moved + columns * 2
    assert dispatch.device_bytes == moved + read_by_each_row
    assert dispatch.coalescing == 1.0
    assert dispatch.atomics == 0
    assert dispatch.barriers <= (2 if "layer" in op else 1)


BACKWARD = {
    "rms_norm": (3, 1, lambda g, x, w: ops.rms_norm_backward(g, x, w, 1e-6, 0.0, *WANTED)),
    "layer_norm": (3, 2, lambda g, x, w: ops.layer_norm_backward(g, x, w, w, 1e-6, *WANTED)),
    "add_rms_norm": (4, 1, lambda g, x, w: ops.add_rms_norm_backward(g, g.clone(), x, w, 1e-6, 0.0, *WANTED)),
    "gated_rms_norm": (5, 1, lambda g, x, w: ops.gated_rms_norm_backward(g, x, g.clone(), w, 1e-6, True, *WANTED)),
}


@pytest.mark.parametrize("columns", [128, 1024, 4096])
@pytest.mark.parametrize("op", BACKWARD)
def test_backward_moves_every_element_once(op, columns):
    tensors, sums, call = BACKWARD[op]
    count = 256  # 64 parts of 4 rows
    g, x, w = rows(count, columns), rows(count, columns), rows(columns)
    first, second = [d for d in dispatches(lambda: call(g, x, w)) if d.kernel.startswith("norm_")]
    partials = 64 * sums * columns * 4
    assert first.device_bytes_unique == tensors * x.numel() * 2 + partials + columns * 2
    assert first.device_bytes == tensors * x.numel() * 2 + partials + 64 * columns * 2  # each part reads the weight
    assert second.device_bytes == partials + sums * columns * 2
    assert first.barriers <= 2 * 4
    assert second.barriers == 1
    assert first.coalescing == second.coalescing == 1.0
    assert first.atomics == second.atomics == 0


def test_group_norm_moves_every_element_once():
    x = rows(2, 64, 16, 16)
    for layout in (x, x.to(memory_format=torch.channels_last)):
        [dispatch] = [d for d in dispatches(lambda t=layout: mpskernels.group_norm(t, 8)) if "norm_group" in d.kernel]
        assert dispatch.device_bytes == dispatch.device_bytes_unique == 2 * x.numel() * 2
        assert dispatch.barriers == 2
