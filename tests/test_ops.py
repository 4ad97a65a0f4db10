"""What holds for every op alike."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import (
    SAMPLES,
    all_equal,
    direct,
    dtypes,
    has_gradient,
    ops,
    random,
    sample,
    to_mps,
    typed,
    without_stock_ops,
)
from torch.utils._pytree import tree_leaves, tree_map

import mpskernels
from mpskernels import _C

# Other ops of ours that an op calls.
BUILT_ON = {
    "linear_cross_entropy": ["mpsk::matmul"],
    "linear_cross_entropy_backward": ["mpsk::matmul"],
}


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
    assert called <= {f"mpsk::{op}", "aten::empty", *BUILT_ON.get(op, ())}


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
        lambda *args, **kwargs: tree_map(lambda t: t + 1, typed(op)(*args, **kwargs)),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    args, kwargs = sample(op)
    assert all_equal(compiled(*args, **kwargs), tree_map(lambda t: t.cpu() + 1, typed(op)(*args, **kwargs)))


@ops
def test_direct_and_typed_are_the_same(op):
    args, kwargs = sample(op)
    ours = tree_leaves(typed(op)(*args, **kwargs))  # which may leave out what is for the backward op alone
    assert all_equal(tree_leaves(direct(op)(*args, **kwargs))[: len(ours)], ours)


@ops
def test_op_runs_where_no_gradient_is_needed(op):
    args, kwargs = sample(op)
    leaf = args[0].detach().requires_grad_()
    with torch.no_grad():
        assert not any(t.requires_grad for t in tree_leaves(typed(op)(leaf, *args[1:], **kwargs)))
    with torch.inference_mode():
        typed(op)(leaf, *args[1:], **kwargs)
    if has_gradient(op):
        assert any(t.requires_grad for t in tree_leaves(typed(op)(leaf, *args[1:], **kwargs)))
        return
    with pytest.raises(NotImplementedError, match=f"mpsk::{op}: no gradient for "):
        typed(op)(leaf, *args[1:], **kwargs)


def tensor_arguments(op):
    """(index, name) of each tensor argument of its sample."""
    args, _ = sample(op)
    names = [argument.name for argument in direct(op).default._schema.arguments]
    return [(i, names[i]) for i, value in enumerate(args) if isinstance(value, torch.Tensor)]


TENSORS = [(op, *argument) for op in SAMPLES for argument in tensor_arguments(op)]
each_tensor = pytest.mark.parametrize(("op", "index", "name"), TENSORS)
each_float_tensor = pytest.mark.parametrize(
    ("op", "index", "name"), [case for case in TENSORS if sample(case[0])[0][case[1]].is_floating_point()]
)


@each_float_tensor
def test_op_rejects_a_tangent(op, index, name):
    args, kwargs = sample(op)

    def call(function, tensor):
        return function(*args[:index], tensor, *args[index + 1 :], **kwargs)

    text = (
        f"mpsk::{op}: no forward-mode gradient for {name}, which has a tangent; "
        "pass its primal, of torch.autograd.forward_ad.unpack_dual"
    )
    tensor, tangent = args[index], torch.ones_like(args[index])
    for function in (direct(op), typed(op)):
        with pytest.raises(NotImplementedError) as info:
            torch.func.jvp(lambda t, f=function: call(f, t), (tensor,), (tangent,))
        assert str(info.value) == text
        with pytest.raises(NotImplementedError) as info:
            torch.func.jacfwd(lambda t, f=function: call(f, t))(tensor)
        assert str(info.value) == text
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(tensor, tangent)
            for mode in (torch.enable_grad, torch.no_grad):
                with mode(), pytest.raises(NotImplementedError) as info:
                    call(function, dual)
                assert str(info.value) == text
            expected = call(function, tensor)
            assert all_equal(call(function, forward_ad.unpack_dual(dual).primal), expected)
            with torch.inference_mode():
                assert all_equal(call(function, dual), expected)


@each_float_tensor
def test_op_rejects_a_functional_gradient(op, index, name):
    args, kwargs = sample(op)

    def total(tensor):
        return sum(t.sum() for t in tree_leaves(typed(op)(*args[:index], tensor, *args[index + 1 :], **kwargs)))

    text = f"mpsk::{op}: no gradient for {name}, which requires grad; call under torch.no_grad() or pass it detached"
    if has_gradient(op):  # torch's own refusal, of gradients that are registered as a library's ops register them
        text = "In order to use an autograd.Function with functorch transforms"
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(RuntimeError) as info:  # NotImplementedError is one
            transform(total)(args[index])
        assert str(info.value).startswith(text)


@each_tensor
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_op_runs_under_vmap(op, index, name):
    args, kwargs = sample(op)

    def call(tensor):
        return typed(op)(*args[:index], tensor, *args[index + 1 :], **kwargs)

    first = args[index]
    batch = torch.stack([first, first * 2, first * 3] if first.is_floating_point() else [first] * 3)
    expected = tree_map(lambda *each: torch.stack(each), *[call(tensor) for tensor in batch])
    assert all_equal(torch.func.vmap(call)(batch), expected)


LAYOUTS = {
    "sparse": (lambda t: t.to_sparse(), "one of layout Sparse; pass {}.to_dense()"),
    "mkldnn": (lambda t: t.float().to_mkldnn(), "one of layout Mkldnn; pass {}.to_dense()"),
    "nested": (lambda t: torch.nested.as_nested_tensor([t, t]), "a nested one"),
    "jagged": (lambda t: torch.nested.as_nested_tensor([t[None], t[None]], layout=torch.jagged), "a nested one"),
}


def has_layout(layout, op, index):
    return layout != "mkldnn" or sample(op)[0][index].is_floating_point()  # which has no integers


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse")
@pytest.mark.parametrize(
    ("layout", "op", "index", "name"),
    [(layout, *case) for layout in LAYOUTS for case in TENSORS if has_layout(layout, *case[:2])],
)
def test_op_rejects_what_is_not_dense(op, index, name, layout):
    make, text = LAYOUTS[layout]
    args, kwargs = sample(op)
    tensor = make(args[index].cpu())  # mps has none of these
    # torch's jagged tensors take any function called rms_norm for torch's, and refuse by its rules, before us.
    ours = (op, layout) != ("rms_norm", "jagged")
    called = op.removesuffix("_saving")  # what the user calls
    for function in (direct(op), typed(op)):
        with pytest.raises(NotImplementedError if ours else (ValueError, AttributeError, TypeError)) as info:
            function(*args[:index], tensor, *args[index + 1 :], **kwargs)
        if ours:
            assert str(info.value) == f"mpsk::{called}: expected {name} to be a dense tensor, got {text.format(name)}"


@ops
def test_op_infers_shapes_on_meta(op):
    args, kwargs = sample(op)
    expected = {function: function(*args, **kwargs) for function in (direct(op), typed(op))}
    args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    for function, wanted in expected.items():
        for out, like in zip(tree_leaves(function(*args, **kwargs)), tree_leaves(wanted), strict=True):
            assert (out.shape, out.dtype, out.device.type) == (like.shape, like.dtype, "meta")


@ops
def test_op_rejects_what_is_no_tensor(op):
    args, kwargs = sample(op)
    for function in (direct(op), typed(op)):
        with pytest.raises((RuntimeError, TypeError), match="but instead found type 'str'"):
            function("not a tensor", *args[1:], **kwargs)


# Calls of one tensor of shape (2, 1, 3, 8), of which the first dimension is a stride apart.
FAR = {
    "rope": lambda x: mpskernels.rope(x),
    "qk_norm_rope": lambda x: mpskernels.qk_norm_rope(x),
    "softmax": lambda x: mpskernels.softmax(x),
    "log_softmax": lambda x: mpskernels.log_softmax(x),
    "cross_entropy": lambda x: mpskernels.cross_entropy(x, torch.ones(2, 1, 3, dtype=torch.int64, device="mps")),
    "linear_cross_entropy": lambda x: mpskernels.linear_cross_entropy(
        x[:, 0, 0], x.new_ones(4, 8), torch.ones(2, dtype=torch.int64, device="mps")
    ),
    "swiglu": lambda x: mpskernels.swiglu(x),
    "geglu": lambda x: mpskernels.geglu(x, x),
    "reglu": lambda x: mpskernels.reglu(x),
}


def test_ops_and_their_gradients_read_past_2_to_31_elements():
    memory = torch.empty(2**31 + 40, dtype=torch.float16, device="mps")
    values = random(2, 1, 3, 8, dtype=torch.float16)
    for offset in (0, 1):  # with vectors and without
        far = memory.as_strided((2, 1, 3, 8), (2**31, 8, 8, 1), offset)
        far.copy_(values)
        for op, call in FAR.items():
            found = []
            for x in (far, to_mps(values)):
                leaf = x.detach().requires_grad_()
                y = call(leaf)
                found.append((y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))))
            assert all_equal(*found), op
