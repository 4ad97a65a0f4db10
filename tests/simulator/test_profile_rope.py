"""The work that rope does, counted."""

import pytest
from cases import dtypes, random, to_mps

import mpskernels
from mpskernels import simulator


@dtypes
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads_third", [False, True])
def test_rope_moves_each_element_once(dtype, interleaved, heads_third):
    q, k = (random(2, heads, 64, 128, dtype=dtype) for heads in (8, 2))
    if heads_third:
        q, k = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k))
    q, k = to_mps([q, k])
    with simulator.profile() as p:
        mpskernels.rope(q, k, interleaved=interleaved)
    [d] = p.dispatches
    size = (q.numel() + k.numel()) * q.element_size()
    assert (d.device_read, d.device_written) == (d.device_read_unique, d.device_written_unique) == (size, size)
    assert d.barriers == d.atomics == d.threadgroup_memory == 0
    # Halves of a head are 128 bytes in half, 256 in float. Interleaved, neighbouring threads lie 32 bytes apart, and a
    # simdgroup's two accesses take the same lines in turn.
    assert d.device_lines <= (2 if interleaved else 1) * d.device_lines_ideal


def test_rope_computes_a_rotation_once_for_several_heads():
    def special(heads):
        with simulator.profile() as p:
            mpskernels.rope(to_mps(random(1, heads, 1024, 128)))
        return p.dispatches[0].integer_operations / heads

    assert special(16) < special(1) / 2
