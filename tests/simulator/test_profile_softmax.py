"""The work that softmax does, counted."""

import pytest
import torch
from cases import dtypes, random, to_mps

import mpskernels
from mpskernels import simulator


@dtypes
@pytest.mark.parametrize("columns", [256, 1024, 4096, 16384])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax_moves_each_element_once(op, columns, dtype):
    x = to_mps(random(8, columns, dtype=dtype)).requires_grad_()
    size = x.numel() * x.element_size()
    with simulator.profile() as forward:
        y = getattr(mpskernels, op)(x)
    with simulator.profile() as backward:
        y.backward(y.detach())
    [f], [b] = forward.dispatches, [d for d in backward.dispatches if d.kernel.startswith("softmax")]
    assert (f.device_read, f.device_written) == (f.device_read_unique, f.device_written_unique) == (size, size)
    assert (b.device_read, b.device_written) == (2 * size, size)
    for d in (f, b):
        assert d.device_lines == d.device_lines_ideal
        assert d.barriers <= 1
        assert d.atomics == 0


def test_long_rows_are_read_twice_and_no_more():
    x = to_mps(random(2, 32768))
    with simulator.profile() as p:
        mpskernels.softmax(x)
    [d] = p.dispatches
    assert d.device_read == 2 * d.device_read_unique == 2 * x.numel() * 4
    assert d.device_written == d.device_written_unique == x.numel() * 4


def test_a_shared_mask_is_unique_once():
    x, mask = to_mps([random(4, 16, 256), random(16, 256)])
    with simulator.profile() as p:
        mpskernels.softmax(x, mask)
    [d] = p.dispatches
    assert d.device_read_unique == (x.numel() + mask.numel()) * 4
    assert d.device_read == 2 * x.numel() * 4


def test_causal_counts_are_the_same_each_time():
    x = to_mps(random(4, 64, 64, dtype=torch.float16))
    counts = []
    for _ in range(2):
        with simulator.profile() as p:
            mpskernels.softmax(x, is_causal=True)
        counts.append(p.dispatches[0])
    assert counts[0] == counts[1]
