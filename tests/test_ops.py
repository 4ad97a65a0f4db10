"""What holds for every op alike."""

import pytest
import torch
from cases import SAMPLES, direct, dtypes, ops, sample, typed, without_stock_ops

from mpskernels import _C


def launch_count(op):
    return sum(_C.launches().get(op, {}).values())


def test_every_op_has_a_sample():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mpsk::")}
    assert names == {f"mpsk::{op}" for op in SAMPLES}


@ops
@dtypes
def test_op_passes_opcheck(op, dtype):
    args, kwargs = sample(op, dtype)
    torch.library.opcheck(direct(op).default, args, kwargs)


@ops
@dtypes
def test_op_runs_its_own_kernel(op, dtype):
    args, kwargs = sample(op, dtype)
    before = launch_count(op)
    with without_stock_ops(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        typed(op)(*args, **kwargs)
    assert launch_count(op) > before
    # Everything that passed torch's dispatcher on the way; from C++ as well.
    called = {event.name for event in profile.events() if "::" in event.name}
    assert f"mpsk::{op}" in called
    assert called <= {f"mpsk::{op}", "aten::empty"}


@ops
@dtypes
def test_second_call_creates_no_pipeline(op, dtype):
    args, kwargs = sample(op, dtype)
    typed(op)(*args, **kwargs)
    pipelines, launches = _C.pipelines(), launch_count(op)
    typed(op)(*args, **kwargs)
    assert _C.pipelines() == pipelines
    assert launch_count(op) > launches


@ops
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_op_compiles(op, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *args, **kwargs: typed(op)(*args, **kwargs) + 1, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    args, kwargs = sample(op)
    assert torch.equal(compiled(*args, **kwargs).cpu(), typed(op)(*args, **kwargs).cpu() + 1)


@ops
def test_direct_and_typed_are_the_same(op):
    args, kwargs = sample(op)
    assert torch.equal(direct(op)(*args, **kwargs).cpu(), typed(op)(*args, **kwargs).cpu())


@ops
def test_op_runs_where_no_gradient_is_needed(op):
    args, kwargs = sample(op)
    leaf = args[0].detach().requires_grad_()
    with torch.no_grad():
        assert not typed(op)(leaf, *args[1:], **kwargs).requires_grad
    with torch.inference_mode():
        typed(op)(leaf, *args[1:], **kwargs)
    with pytest.raises(NotImplementedError, match=f"mpsk::{op}: no gradient for "):
        typed(op)(leaf, *args[1:], **kwargs)


@ops
def test_op_rejects_what_is_no_tensor(op):
    args, kwargs = sample(op)
    for function in (direct(op), typed(op)):
        with pytest.raises((RuntimeError, TypeError), match="but instead found type 'str'"):
            function("not a tensor", *args[1:], **kwargs)
