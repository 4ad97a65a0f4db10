"""Group norm against its definition in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import assert_accurate, assert_rejected, dtypes, random, to_mps
from torch.testing._internal.common_methods_invocations import op_db

import mpskernels
from mpskernels import _C

EPS = 1e-5


def definition(x, groups, weight=None, bias=None, eps=EPS, silu=False):
    y = F.group_norm(x, groups, eps=eps)
    columns = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(columns)
    y = y if bias is None else y + bias.view(columns)
    return F.silu(y) if silu else y


def compare(x, groups, weight=None, bias=None, eps=EPS, silu=False, grad=None):
    """Forward and backward of tensors on the CPU; returns what the op made."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    doubles = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    expected = definition(doubles[0], groups, doubles[1], doubles[2], eps, silu)
    leaves = [None if t is None else to_mps(t.detach()).requires_grad_() for t in (x, weight, bias)]
    out = mpskernels.group_norm(leaves[0], groups, leaves[1], leaves[2], eps, silu=silu)
    assert out.dtype == x.dtype
    want = expected.detach()
    tiny = torch.finfo(torch.float32).eps / torch.finfo(x.dtype).eps
    assert_accurate(out.detach(), want, scale=want.abs() + 32 * tiny * max(1.0, want.abs().max().item()), allowed=0.51)
    grad = random(*x.shape, seed=9).to(x.dtype) if grad is None else grad
    found = torch.autograd.grad(out, [t for t in leaves if t is not None], to_mps(grad))
    wanted = torch.autograd.grad(expected, [t for t in doubles if t is not None], grad.double())
    spread = x.double().reshape(x.size(0), groups, -1).var(-1, unbiased=False).min().item()
    terms = grad.double().abs().max().item() * max(1.0, *(t.double().abs().max().item() for t in tensors[1:]), 1.0) ** 2
    sizes = [4 * terms / math.sqrt(spread + eps)] + [terms * math.sqrt(x.numel() / x.size(1))] * 2
    for got, of, want, size in zip(found, tensors, wanted, sizes, strict=False):
        assert (got.dtype, got.shape) == (of.dtype, of.shape)
        own = torch.finfo(torch.float32).eps / torch.finfo(got.dtype).eps
        assert_accurate(got, want, scale=want.abs() + 32 * own * size, allowed=0.51)
    return out


def parameters(channels, dtype):
    return random(channels, dtype=dtype, seed=1), random(channels, dtype=dtype, seed=2)


SHAPES = [
    ((2, 6, 5), 3),
    ((1, 4), 2),
    ((3, 8, 4, 4), 1),
    ((2, 8, 3, 5), 8),
    ((2, 12, 7, 3), 3),
    ((2, 32, 8, 8), 4),
    ((1, 4, 2, 3, 4), 2),
    ((2, 6, 37, 31), 2),
    ((1, 16, 64, 66), 2),  # two parts and a bit
    ((1, 2, 131, 127), 1),
]


@dtypes
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_group_norm_matches_its_definition(shape, groups, order, silu, dtype):
    x = random(*shape, dtype=dtype)
    if order == "last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    weight, bias = parameters(shape[1], torch.float32 if silu else dtype)
    out = compare(x, groups, weight, bias, silu=silu)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = order == "last" and not x.is_contiguous() and len(shape) in formats
    assert out.is_contiguous(memory_format=formats[len(shape)] if last else torch.contiguous_format)


@pytest.mark.parametrize("which", ["none", "weight", "bias"])
def test_group_norm_without_parameters(which):
    weight, bias = parameters(6, torch.float32)
    x = random(2, 6, 5, 4)
    compare(x, 3, weight if which == "weight" else None, bias if which == "bias" else None, silu=True)


@pytest.mark.parametrize("order", ["first", "last"])
def test_group_norm_of_more_channels_than_are_staged(order):
    for channels, positions in [(1100, 3), (1024, 2), (8000, 5)]:  # 16384 elements, and less, and more
        x = random(2, channels, positions)
        x = x.mT.contiguous().mT if order == "last" else x
        compare(x, 1, *parameters(channels, torch.float32))


def test_group_norm_of_more_parts_than_a_threadgroup_merges():
    x = random(1, 2, (1 << 18) + 3) + torch.tensor([0.0, 3.0])[:, None]
    want = definition(x.double(), 1, *(p.double() for p in parameters(2, torch.float32)))
    out = mpskernels.group_norm(to_mps(x), 1, *to_mps(parameters(2, torch.float32)))
    assert_accurate(out, want, scale=want.abs().clamp(min=1.0), allowed=16.0)


def test_definition_passes_gradcheck():
    leaves = [t.double().requires_grad_() for t in (random(2, 6, 4), *parameters(6, torch.float32))]
    assert torch.autograd.gradcheck(lambda x, w, b: definition(x, 3, w, b, silu=True), leaves)


STRIDES = {
    "channels_of_more": lambda: random(2, 20, 4, 6)[:, 4:16],
    "every_second_channel": lambda: random(2, 24, 4, 6)[:, ::2],
    "every_second_position": lambda: random(2, 12, 48)[..., ::2],
    "samples_last": lambda: random(12, 24, 2).permute(2, 0, 1),
    "samples_expanded": lambda: random(1, 12, 4, 6).expand(3, 12, 4, 6),
    "offset": lambda: random(2 * 12 * 24 + 1)[1:].view(2, 12, 4, 6),
}


@pytest.mark.parametrize("layout", STRIDES)
def test_group_norm_reads_strides(layout):
    x = STRIDES[layout]()
    compare(
        x,
        4,
        *parameters(12, torch.float32),
        grad=random(*x.shape[::-1], seed=5).permute(*range(x.dim())[::-1]).contiguous(),
    )
    compare(x, 4, *parameters(12, torch.float32), grad=random(1, seed=5).expand(x.shape))


@pytest.mark.parametrize("after", ["transposed", "summed", "concatenated"])
def test_group_norm_takes_whatever_gradient_autograd_has(after):
    use = {
        "transposed": lambda out: out.transpose(2, 3) * torch.arange(6.0, device=out.device),
        "summed": lambda out: out.sum(3) * torch.arange(6.0, device=out.device),
        "concatenated": lambda out: torch.cat((out, out * 2), 3) * torch.arange(8.0, device=out.device),
    }[after]
    x = random(2, 4, 6, 4)

    def gradient(norm, x):
        x = x.detach().requires_grad_()
        out = use(norm(x, 2))
        return torch.autograd.grad((out * out).sum(), x)[0]

    got = gradient(lambda x, groups: mpskernels.group_norm(x, groups), to_mps(x))
    torch.testing.assert_close(got.cpu().double(), gradient(F.group_norm, x.double()), rtol=1e-4, atol=1e-3)


def test_positions_of_several_strides_are_refused():
    x = torch.empty(2, 4, 6, 5, device="mps").transpose(2, 3)
    with pytest.raises(NotImplementedError, match=r"expected the dimensions of x from the third on to have one stride"):
        mpskernels.group_norm(x, 2)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 4, 100, 101)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("size", [1e-19, 1e10, 1e37, 3e38])
def test_group_norm_takes_rows_of_any_size(shape, dtype, size):
    x = (random(*shape).double() * size).to(dtype)
    out = mpskernels.group_norm(to_mps(x), 2, eps=0.0)
    want = x.double().view(shape[0], 2, -1)
    want = want - want.mean(-1, keepdim=True)
    want = (want / (want.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).smallest_normal).sqrt()).view(
        shape
    )
    assert_accurate(out, want, scale=want.abs().clamp(min=1.0), allowed=16.0 if dtype == torch.float32 else 0.51)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 4, 100, 101)], ids=str)
def test_nearly_constant_groups_keep_their_deviation(shape):
    x = 4096 + random(*shape)
    out = mpskernels.group_norm(to_mps(x), 2)
    want = definition(x.double(), 2)
    assert_accurate(out, want, scale=want.abs().clamp(min=1.0), allowed=16.0)
    constant = mpskernels.group_norm(torch.full(shape, 1234.5, device="mps"), 2).cpu()
    assert constant.abs().max() < 1e-3
    # Parts that differ by far more than they vary.
    x = random(*shape)
    x[:, : shape[1] // 2] += 1000
    want = definition(x.double(), 1)
    assert_accurate(mpskernels.group_norm(to_mps(x), 1), want, scale=want.abs().clamp(min=1.0), allowed=16.0)


def test_bad_groups_stay_by_themselves():
    for shape in [(2, 4, 3, 3), (2, 4, 100, 101)]:
        x = random(*shape)
        before = mpskernels.group_norm(to_mps(x), 2).cpu()
        for bad in (math.nan, math.inf):
            x[1, 0, 1, 1] = bad
            after = mpskernels.group_norm(to_mps(x), 2).cpu()
            assert after[1, :2].isnan().all()
            assert torch.equal(after[0], before[0])
            assert torch.equal(after[1, 2:], before[1, 2:])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3)], ids=str)
def test_group_norm_of_nothing(shape):
    x = torch.empty(shape, device="mps", requires_grad=True)
    weight = torch.ones(shape[1], device="mps", requires_grad=True)
    out = mpskernels.group_norm(x, 2, weight)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape
    assert not weight.grad.cpu().any()


@pytest.mark.parametrize("shape", [(2, 6, 9, 5), (1, 6, 90, 91)], ids=str)
def test_only_the_gradients_that_are_needed(shape):
    tensors = {"x": random(*shape), "weight": random(6, seed=1), "bias": random(6, seed=2)}

    def gradients(wanted):
        leaves = {name: t.to("mps").requires_grad_(name in wanted) for name, t in tensors.items()}
        out = mpskernels.group_norm(leaves["x"], 3, leaves["weight"], leaves["bias"], silu=True)
        return dict(zip(wanted, torch.autograd.grad(out.square().sum(), [leaves[n] for n in wanted]), strict=True))

    together = gradients(list(tensors))
    for name in tensors:
        assert torch.equal(gradients([name])[name].cpu(), together[name].cpu())


def test_group_norm_launches():
    def launched(shape):
        _C.reset_launches()
        x = random(*shape).to("mps").requires_grad_()
        weight = torch.ones(x.size(1), device="mps", requires_grad=True)
        mpskernels.group_norm(x, x.size(1) // 2, weight).sum().backward()
        return [[label.split("?")[0].removesuffix("_f32") for label in _C.launches()[op]] for op in OPS]

    ops_backward = sorted(
        ["norm_group_grad", "norm_group_merge", "norm_group_part", "norm_group_sums", "norm_parameters"]
    )
    small, large = launched((2, 4, 3, 3)), launched((1, 4, 100, 101))
    assert small == [["norm_group_part"], ops_backward]
    assert large == [["norm_group_part", "norm_group_part"], ops_backward]
    assert launched((1, 2, 1 << 18)) == [["norm_group_part", "norm_group_part"], ops_backward]
    assert launched((1, 2, (1 << 18) + 1))[0] == ["norm_group_merge", "norm_group_part", "norm_group_part"]


OPS = ("group_norm", "group_norm_backward")


@dtypes
def test_group_norm_passes_torchs_own_samples(dtype):
    [info] = [op for op in op_db if op.name == "nn.functional.group_norm"]
    done = 0
    for entry in info.sample_inputs("cpu", dtype, requires_grad=False):
        x, groups = entry.input, entry.args[0]
        weight, bias = entry.kwargs.get("weight"), entry.kwargs.get("bias")
        eps = entry.kwargs.get("eps", 1e-5)
        if eps < 0:
            with pytest.raises(ValueError, match="expected an eps >= 0"):
                mpskernels.group_norm(x.to("mps"), groups, eps=eps)
        elif x.numel():
            compare(x, groups, weight, bias, eps)
            done += 1
    assert done >= 3


def test_group_norm_compiles_with_its_gradient():
    torch._dynamo.reset()
    compiled = torch.compile(mpskernels.group_norm, fullgraph=True, backend="aot_eager")
    tensors = [random(2, 6, 4, 4), random(6, seed=1), random(6, seed=2)]

    def gradients(function):
        x, weight, bias = (t.to("mps").requires_grad_() for t in tensors)
        out = function(x.to(memory_format=torch.channels_last), 3, weight, bias, silu=True)
        return torch.autograd.grad(out.square().sum(), (x, weight, bias))

    for ours, plain in zip(gradients(compiled), gradients(mpskernels.group_norm), strict=True):
        assert torch.equal(ours.cpu(), plain.cpu())


def test_group_norm_passes_opcheck_with_gradients():
    x, weight, bias = (t.to("mps").requires_grad_() for t in (random(2, 6, 4), random(6, seed=1), random(6, seed=2)))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for silu in (False, True):
        op = torch.ops.mpsk.group_norm.default
        torch.library.opcheck(op, (x, 3, weight, bias, EPS), {"silu": silu}, test_utils=tests)


def empty(*shape, dtype=torch.float32, device="mps"):
    return torch.empty(shape, dtype=dtype, device=device)


REJECTED = {
    "x_dtype": (
        {"x": lambda: empty(2, 6, 4, dtype=torch.int32)},
        TypeError,
        "expected x of dtype float32, float16 or bfloat16, got int32",
    ),
    "x_dimensions": ({"x": lambda: empty(6)}, ValueError, "expected x.dim() >= 2, got 1"),
    "x_on_cpu": (
        {"x": lambda: empty(2, 6, 4, device="cpu")},
        ValueError,
        'expected x on device mps, got cpu; move it with x.to("mps")',
    ),
    "groups": ({"num_groups": lambda: 0}, ValueError, "expected num_groups >= 1, got 0"),
    "divisor": ({"num_groups": lambda: 4}, ValueError, "expected x.size(1) to be a multiple of num_groups, 4, got 6"),
    "weight_size": (
        {"weight": lambda: empty(5)},
        ValueError,
        "expected weight.size(-1) == 6 to match x.size(1), got 5",
    ),
    "weight_dtype": (
        {"weight": lambda: empty(6, dtype=torch.float16)},
        TypeError,
        "expected weight of dtype float32 to match x, or float32, got float16",
    ),
    "weight_dimensions": ({"weight": lambda: empty(1, 6)}, ValueError, "expected weight.dim() == 1, got 2"),
    "bias_size": ({"bias": lambda: empty(7)}, ValueError, "expected bias.size(-1) == 6 to match x.size(1), got 7"),
    "bias_on_meta": (
        {"bias": lambda: empty(6, device="meta")},
        ValueError,
        "expected bias on device mps to match x, got meta",
    ),
    "eps": ({"eps": lambda: math.nan}, ValueError, "expected an eps >= 0 that is finite in float32, got nan"),
    "grad_size": ({"grad": lambda: empty(2, 6, 5)}, ValueError, "expected grad.size(2) == 4 to match x.size(2), got 5"),
    "grad_dtype": (
        {"grad": lambda: empty(2, 6, 4, dtype=torch.float16)},
        TypeError,
        "expected grad of dtype float32 to match x, got float16",
    ),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", REJECTED)
def test_group_norm_rejects(case, op):
    changed, error, text = REJECTED[case]
    arguments = {
        "grad": empty(2, 6, 4),
        "x": empty(2, 6, 4),
        "num_groups": 3,
        "weight": empty(6),
        "bias": empty(6),
        "eps": EPS,
    }
    arguments |= {name: make() for name, make in changed.items()}
    if op == "group_norm":
        if arguments.pop("grad") is not None and "grad" in changed:
            return
        assert_rejected(op, tuple(arguments.values()), {}, error, f"mpsk::{op}: {text}")
    else:
        assert_rejected(op, (*arguments.values(), False, True, True), {}, error, f"mpsk::{op}: {text}")
