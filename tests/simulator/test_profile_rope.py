"""The work that rope does, counted."""

import pytest
import torch
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


def norm_tensors(dtype, batch=2, length=64, d=128, layout=None):
    """q, k of one projection to q, k and v, heads second; and their weights."""
    qkv = to_mps(random(batch, length, 12, d, dtype=dtype)).transpose(1, 2)
    q, k, _ = qkv.split([8, 2, 2], 1)
    return q, k, *to_mps([random(d, dtype=dtype, seed=seed) for seed in (1, 2)])


def norm_case(dtype, d):
    """q and k of one projection to q, k and v, weights; the bytes of q and k, and of a weight."""
    qkv = to_mps(random(2, 64, 12, d, dtype=dtype)).transpose(1, 2)
    q, k, _ = qkv.split([8, 2, 2], 1)
    weights = to_mps([random(d, dtype=dtype, seed=seed) for seed in (1, 2)])
    return (q, k, *weights), (q.numel() + k.numel()) * q.element_size(), d * q.element_size()


UNITS = 2 * 64 * 10  # of so few threads, a head of a position each


@dtypes
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("d", [64, 128, 256])
def test_qk_norm_rope_moves_each_element_once(dtype, interleaved, d):
    tensors, size, of_weight = norm_case(dtype, d)
    with simulator.profile() as p:
        mpskernels.qk_norm_rope(*tensors, interleaved=interleaved)
    [f] = p.dispatches
    assert f.device_read_unique == size + 2 * of_weight
    assert f.device_read == size + UNITS * of_weight  # each unit reads a weight, from cache
    assert f.device_written == f.device_written_unique == size
    assert f.barriers == f.atomics == f.threadgroup_memory == 0
    # Halves of a head of 64 are 64 bytes in half, half a line.
    assert f.device_lines <= (2 if of_weight == 128 else 1.01) * f.device_lines_ideal


@dtypes
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradient_of_qk_norm_rope_moves_each_element_once(dtype, interleaved):
    tensors, size, of_weight = norm_case(dtype, 128)
    leaves = [t.detach().requires_grad_() for t in tensors]
    outs = mpskernels.qk_norm_rope(*leaves, interleaved=interleaved)
    grads = [torch.ones_like(t) for t in outs]
    with simulator.profile() as p:
        torch.autograd.grad(outs, leaves, grads)
    b, w = (d for d in p.dispatches if d.kernel.startswith("rope_norm"))
    partials = UNITS // 16 * 4 * 128  # of threadgroups, which have 16 units of 16 lanes here
    assert b.device_read_unique == 2 * size + 2 * of_weight
    assert b.device_read == 2 * size + UNITS * of_weight
    assert b.device_written == b.device_written_unique == size + partials
    assert w.device_read == w.device_read_unique == partials
    assert w.device_written == w.device_written_unique == 2 * of_weight
    assert (b.barriers, w.barriers, b.atomics, w.atomics) == (2, 1, 0, 0)
    assert b.device_lines <= 1.01 * b.device_lines_ideal


def test_qk_norm_rope_reads_a_weight_once_for_several_heads():
    with simulator.profile() as p:
        q, weight = to_mps([random(1, 16, 1024, 128), random(128)])
        mpskernels.qk_norm_rope(q, None, weight)
    [f] = p.dispatches
    assert f.device_read == q.numel() * 4 + q.numel() * 4 / 4  # four heads
