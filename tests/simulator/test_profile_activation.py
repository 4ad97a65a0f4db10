"""The work that gated activations do, counted."""

import pytest
from cases import dtypes, random, to_mps

import mpskernels
from mpskernels import simulator


@dtypes
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("op", ["swiglu", "geglu", "reglu"])
def test_gated_moves_each_element_once(op, packed, dtype):
    x = to_mps(random(64, 2048, dtype=dtype)).requires_grad_()
    tensors = [x] if packed else [x, to_mps(random(64, 2048, dtype=dtype, seed=1)).requires_grad_()]
    with simulator.profile() as forward:
        y = getattr(mpskernels, op)(*tensors)
    inputs, outputs = (sum(t.numel() * t.element_size() for t in group) for group in (tensors, [y]))
    with simulator.profile() as backward:
        y.backward(y.detach())
    [f], [b] = forward.dispatches, [d for d in backward.dispatches if d.kernel.startswith("gated")]
    assert (f.device_read, f.device_written) == (f.device_read_unique, f.device_written_unique) == (inputs, outputs)
    assert (b.device_read, b.device_written) == (inputs + outputs, inputs)
    for d in (f, b):
        assert d.device_lines == d.device_lines_ideal
        assert d.barriers == d.atomics == d.threadgroup_memory == 0
