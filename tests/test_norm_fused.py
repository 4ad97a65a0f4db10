"""All norms of rows, forward and backward, against their definitions in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPE_IDS,
    SAMPLES,
    assert_accurate,
    assert_rejected,
    direct,
    dtypes,
    in_threads,
    random,
    to_mps,
    typed,
)
from torch.testing._internal.common_methods_invocations import op_db

import mpskernels
from mpskernels import _C

EPS = 1e-5
SMALLEST_NORMAL = torch.finfo(torch.float32).smallest_normal
# case -> op, its tensors in order, options
CASES = {
    "rms_norm": ("rms_norm", "x weight", {}),
    "rms_norm_offset": ("rms_norm", "x weight", {"offset": 1.0}),
    "rms_norm_plain": ("rms_norm", "x -", {}),
    "layer_norm": ("layer_norm", "x weight bias", {}),
    "layer_norm_weight": ("layer_norm", "x weight -", {}),
    "layer_norm_bias": ("layer_norm", "x - bias", {}),
    "layer_norm_plain": ("layer_norm", "x - -", {}),
    "add_rms_norm": ("add_rms_norm", "x residual weight", {"offset": 1.0}),
    "add_layer_norm": ("add_layer_norm", "x residual weight bias", {}),
    "gated_rms_norm": ("gated_rms_norm", "x gate weight", {}),
    "gated_rms_norm_first": ("gated_rms_norm", "x gate weight", {"norm_before_gate": False}),
    "gated_rms_norm_plain": ("gated_rms_norm", "x gate -", {}),
    "modulated_norm": ("modulated_norm", "x scale shift - -", {}),
    "modulated_norm_affine": ("modulated_norm", "x scale shift weight bias", {}),
    "modulated_norm_rms": ("modulated_norm", "x scale shift weight -", {"rms": True}),
}
cases = pytest.mark.parametrize("case", CASES)
PARAMETERS = ("weight", "bias")
MODULATION = ("scale", "shift")


def definition(op, tensors, eps=EPS, offset=0.0, norm_before_gate=True, rms=None):
    """What the op computes, in the dtype of the tensors; a tuple of its outputs."""
    get = tensors.get
    x = tensors["x"]
    if get("residual") is not None:
        x = x + tensors["residual"]
    h = x
    gate = None if get("gate") is None else F.silu(tensors["gate"])
    if gate is not None and not norm_before_gate:
        x = x * gate
    centered = not rms if op == "modulated_norm" else "layer" in op
    d = x - x.mean(-1, keepdim=True) if centered else x
    y = d / (d.square().mean(-1, keepdim=True) + max(eps, SMALLEST_NORMAL)).sqrt()
    if get("weight") is not None:
        y = y * (tensors["weight"] + offset)
    if get("bias") is not None:
        y = y + tensors["bias"]
    if get("scale") is not None:
        shape = (x.size(0), *[1] * (x.dim() - 2), x.size(-1))
        y = y * (1 + tensors["scale"].view(shape)) + tensors["shift"].view(shape)
    if gate is not None and norm_before_gate:
        y = y * gate
    return (y, h) if get("residual") is not None else (y,)


def inputs(case, shape, dtype, parameter_dtype=None, seed=0, grid=False):
    """Tensors of the case by name, on the CPU. With `grid`, multiples of 1/8 whose sums any dtype holds."""
    tensors = {}
    for i, name in enumerate(CASES[case][1].split()):
        if name in PARAMETERS:
            tensors[name] = random(shape[-1], dtype=parameter_dtype or dtype, seed=seed + i)
        elif name in MODULATION:
            tensors[name] = random(shape[0], shape[-1], dtype=parameter_dtype or dtype, seed=seed + i)
        elif name != "-":
            values = random(*shape, seed=seed + i)
            tensors[name] = ((values * 8).round() / 8 if grid else values).to(dtype)
    return tensors


def call(case, tensors, eps=EPS, function=None):
    """The outputs of the op, a tuple."""
    op, names, options = CASES[case]
    out = (function or typed(op))(*(tensors.get(name) for name in names.split()), eps, **options)
    return out if isinstance(out, tuple) else (out,)


def check_forward(case, tensors, eps=EPS):
    op, _, options = CASES[case]
    expected = definition(op, {name: t.double() for name, t in tensors.items()}, eps, **options)
    outputs = call(case, to_mps(tensors), eps)
    for out, want in zip(outputs, expected, strict=True):
        assert out.dtype == tensors["x"].dtype
        assert out.is_contiguous()
        # Where terms cancel, what is rounded is of the size of the row, or more.
        scale = torch.maximum(want.abs(), want.square().mean(-1, keepdim=True).sqrt())
        assert_accurate(out, want, scale=scale, allowed=16.0 if out.dtype == torch.float32 else None)
    return outputs


def gradients(case, tensors, grads, double, wanted=None):
    """The gradients of the tensors by name: of our op, or in float64 of the definition."""
    op, _, options = CASES[case]
    if double:
        leaves = {name: t.double().requires_grad_() for name, t in tensors.items()}
        outputs = definition(op, leaves, **options)
        grads = [g if g is None else g.double() for g in grads]
    else:
        leaves = {
            name: t.requires_grad_(wanted is None or name in wanted)
            for name, t in to_mps({name: t.detach() for name, t in tensors.items()}).items()
        }
        outputs, grads = call(case, leaves), to_mps(grads)
    used = [(out, g) for out, g in zip(outputs, grads, strict=True) if g is not None]
    names = [name for name in leaves if leaves[name].requires_grad]
    found = torch.autograd.grad([o for o, _ in used], [leaves[n] for n in names], [g for _, g in used])
    return dict(zip(names, found, strict=True))


def terms(case, tensors, grads):
    """The size of the terms of which the gradients of each row are sums, and at most that of a parameter's."""
    op, _, options = CASES[case]
    doubles = {name: t.double() for name, t in tensors.items()}
    x = doubles["x"] + doubles.get("residual", 0)
    gate = F.silu(doubles["gate"]) if "gate" in doubles else torch.ones(1, dtype=torch.float64)
    first = options.get("norm_before_gate") is False
    centered = not options.get("rms") if op == "modulated_norm" else "layer" in op
    x = x * gate if first else x
    spread = (x - x.mean(-1, keepdim=True) if centered else x).square().mean(-1, keepdim=True)
    grad = max((g.double().abs().max().item() for g in grads if g is not None), default=0.0)
    parameters = grad * math.sqrt(x[..., 0].numel()) * (1 if first else gate.abs().max().item())
    factor = 1.0
    if "weight" in doubles:
        factor *= (doubles["weight"] + options.get("offset", 0.0)).abs().max().item()
    if "scale" in doubles:
        factor *= (1 + doubles["scale"]).abs().max().item()
    return grad * factor * gate.abs().max().item() / (spread + EPS).sqrt(), parameters * max(1.0, factor)


def check_backward(case, tensors, grads):
    found, expected = gradients(case, tensors, grads, False), gradients(case, tensors, grads, True)
    of_rows, of_parameters = terms(case, tensors, grads)
    for name, want in expected.items():
        dtype = found[name].dtype
        assert dtype == tensors[name].dtype
        # One rounding of the result, and a few of float32 where terms cancel.
        size = of_parameters if name in (*PARAMETERS, *MODULATION) else of_rows
        scale = want.abs() + 32 * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps * size
        assert_accurate(found[name], want, scale=scale.expand_as(want), allowed=0.51)
    return found


def output_grads(case, shape, dtype, seed=10):
    return [random(*shape, dtype=dtype, seed=seed + i) for i in range(2 if "add" in case else 1)]


SHAPES = [(3, 2, 1), (2, 5, 3), (5, 8), (2, 3, 40), (3, 130), (2, 3, 256), (2, 129, 36), (2, 2, 1000), (1, 2, 2052)]
LONG = [(2, 2, 4096), (2, 4100), (1, 3, 8192), (2, 8196), (1, 2, 16384), (2, 16390)]


@dtypes
@cases
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_match_their_definitions(case, shape, dtype):
    check_forward(case, inputs(case, shape, dtype))
    check_backward(case, inputs(case, shape, dtype, grid=True), output_grads(case, shape, dtype))


@cases
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_norms_of_long_rows_match_their_definitions(case, shape):
    for dtype in (torch.float32, torch.bfloat16) if shape[-1] < 16390 else (torch.float16,):
        check_forward(case, inputs(case, shape, dtype))
        check_backward(case, inputs(case, shape, dtype, grid=True), output_grads(case, shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@cases
@pytest.mark.parametrize("shape", [(3, 5, 40), (2, 3, 37), (2, 16388)], ids=str)
def test_parameters_may_be_float32(case, shape, dtype):
    check_forward(case, inputs(case, shape, dtype, torch.float32))
    check_backward(case, inputs(case, shape, dtype, torch.float32, grid=True), output_grads(case, shape, dtype))


STRIDES = {
    "transposed": lambda t, shape: t(*shape[::-1]).permute(2, 1, 0),
    "every_second_column": lambda t, shape: t(*shape[:-1], 2 * shape[-1])[..., ::2],
    "first_columns": lambda t, shape: t(*shape[:-1], shape[-1] + 4)[..., : shape[-1]],
    "unaligned": lambda t, shape: t(*shape[:-1], shape[-1] + 3)[..., 3:],
    "expanded": lambda t, shape: t(1, *shape[1:]).expand(shape),
    "expanded_columns": lambda t, shape: t(*shape[:-1], 1).expand(shape),
}


@cases
@pytest.mark.parametrize("layout", STRIDES)
def test_norms_read_any_strides(case, layout):
    shape, dtype = (3, 4, 40), torch.float32
    tensors = inputs(case, shape, dtype)
    for name in ("x", "residual", "gate"):
        if name in tensors:
            kinds = list(STRIDES)
            kind = kinds[(kinds.index(layout) + ("x", "residual", "gate").index(name)) % len(kinds)]
            tensors[name] = STRIDES[kind](lambda *s: (random(*s, seed=3) * 8).round() / 8, shape)
    if "scale" in tensors:  # chunks of one projection
        tensors["scale"], tensors["shift"] = random(3, 240, seed=5).chunk(6, dim=-1)[1:3]
    grads = [STRIDES[layout](lambda *s: random(*s, seed=7), shape) for _ in output_grads(case, shape, dtype)]
    check_forward(case, tensors)
    check_backward(case, tensors, grads)


@cases
def test_norms_at_many_rows(case):
    """More rows than partial sums, samples of an uneven number of rows, and more than one grid dimension holds."""
    for shape in [(3, 701, 20), (1030, 3, 5)]:
        tensors, grads = inputs(case, shape, torch.float32, grid=True), output_grads(case, shape, torch.float32)
        check_backward(case, tensors, grads)


@cases
@pytest.mark.parametrize("shape", [(2, 150, 260), (1, 61, 4100), (2, 12, 8200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_norms_at_many_long_rows(case, shape, dtype):
    """Parts of several rows, and an odd number of them, in each kernel; with the next row on its way, and without."""
    tensors, grads = inputs(case, shape, dtype, grid=True), output_grads(case, shape, dtype)
    check_forward(case, tensors)
    check_backward(case, tensors, grads)


@pytest.mark.slow
def test_forward_and_backward_take_more_threadgroups_than_one_grid_dimension():
    tensors, grads = inputs("layer_norm", (65536 * 8 + 9, 2), torch.float32), [random(65536 * 8 + 9, 2, seed=4)]
    check_forward("layer_norm", tensors)
    tensors.pop("weight"), tensors.pop("bias")  # without parameters, a part of each row
    check_backward("layer_norm_plain", tensors, grads)


@cases
@pytest.mark.parametrize("columns", [40, 2052, 8196])
def test_only_the_gradients_that_are_needed(case, columns):
    """Of each tensor alone, they have the same bits as together."""
    tensors, grads = inputs(case, (2, 3, columns), torch.float16), output_grads(case, (2, 3, columns), torch.float16)
    together = gradients(case, tensors, grads, False)
    for name in tensors:
        alone = gradients(case, tensors, grads, False, wanted=[name])
        assert list(alone) == [name]
        assert torch.equal(alone[name].cpu(), together[name].cpu())


@pytest.mark.parametrize("case", ["add_rms_norm", "add_layer_norm"])
def test_either_output_of_an_addition_may_be_unused(case):
    tensors = inputs(case, (3, 40), torch.float32, grid=True)
    grad = random(3, 40, seed=9)
    check_backward(case, tensors, [grad, None])
    rows = {name: t.to("mps").requires_grad_() for name, t in tensors.items()}
    call(case, rows)[1].backward(grad.to("mps"))
    assert torch.equal(rows["x"].grad.cpu(), grad)
    assert torch.equal(rows["residual"].grad.cpu(), grad)
    assert rows["weight"].grad is None


@cases
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 8), (0, 3, 8)], ids=str)
def test_norms_of_nothing(case, shape):
    tensors = inputs(case, shape, torch.float16)
    _C.reset_launches()
    for out in call(case, to_mps(tensors)):
        assert (out.shape, out.dtype) == (shape, torch.float16)
    assert _C.launches() == {}
    found = gradients(case, tensors, output_grads(case, shape, torch.float16), False)
    for name, gradient in found.items():
        assert gradient.shape == tensors[name].shape
        assert not gradient.cpu().any()


@cases
@dtypes
def test_norms_are_deterministic(case, dtype):
    for shape in [(700, 40), (9, 2052), (40, 8196)]:
        tensors, grads = inputs(case, shape, dtype), output_grads(case, shape, dtype)
        first, second = (gradients(case, tensors, grads, False) for _ in range(2))
        assert all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)
        for a, b in zip(call(case, to_mps(tensors)), call(case, to_mps(tensors)), strict=True):
            assert torch.equal(a.cpu(), b.cpu())


ROWS = ["rms_norm", "layer_norm", "add_layer_norm", "modulated_norm_affine"]


@pytest.mark.parametrize("columns", [16, 64, 160, 512, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_gradients_of_rows_next_to_the_largest_float(columns, dtype):
    """Sums of four of them would be infinite."""
    x = (random(3, columns).sigmoid() * 1.5e38 + 1.5e38).to(dtype)
    weight, grad = random(columns, dtype=dtype, seed=1), random(3, columns, dtype=dtype, seed=2)

    def gradients(norm, x, weight, grad):
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        return torch.autograd.grad(norm(*leaves), leaves, grad)

    got = gradients(lambda x, w: mpskernels.layer_norm(x, w), *to_mps((x, weight, grad)))
    want = gradients(
        lambda x, w: torch.nn.functional.layer_norm(x, x.shape[-1:], w), *(t.double() for t in (x, weight, grad))
    )
    assert got[0].isfinite().all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got[1].cpu().double(), want[1], rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("columns", [40, 2052, 16390])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5])
def test_norms_take_rows_of_any_size(case, columns, dtype, eps):
    """Of any magnitude, beside each other."""
    tensors = inputs(case, (7, columns), dtype)
    sizes = torch.tensor([1e-30, 1e-19, 1e-8, 1.0, 1e10, 1e25, 3e37], dtype=torch.float64)[:, None]
    for name in ("x", "residual"):
        if name in tensors:
            tensors[name] = (tensors[name].double() * sizes).to(dtype)
    check_forward(case, tensors, eps)


@pytest.mark.parametrize("case", ["layer_norm", "add_layer_norm", "modulated_norm"])
@pytest.mark.parametrize("columns", [1, 5, 40, 1000, 2052, 16390])
@dtypes
def test_constant_rows_have_no_deviation(case, columns, dtype):
    tensors = inputs(case, (6, columns), dtype)
    values = torch.tensor([0.0, 0.1, -1e3, 1234.5, 3e4, 1e30 if dtype != torch.float16 else 6e4])[:, None]
    tensors["x"] = values.expand(6, columns).to(dtype)
    if "residual" in tensors:
        tensors["residual"] = torch.zeros(6, columns, dtype=dtype)
    op, _, options = CASES[case]
    y = call(case, to_mps(tensors), 1e-5)[0].cpu().double()
    expected = definition(op, {name: t.double() for name, t in tensors.items()}, 1e-5, **options)[0]
    assert (y[:5] - expected[:5]).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
    # An error of a 2^24th of 1e30 in the mean, corrected by as much, leaves 1e30 * 2^-48, and nothing here.
    assert (y - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("columns", [40, 2052, 16390])
def test_nearly_constant_rows_keep_their_deviation(columns):
    """A variance as E(x^2) - E(x)^2 would be all rounding error here."""
    x = 4096 + random(5, columns)
    check_forward("layer_norm", {**inputs("layer_norm", (5, columns), torch.float32), "x": x})
    tensors = inputs("layer_norm", (5, columns), torch.float32)
    check_backward("layer_norm", {**tensors, "x": x}, [random(5, columns, seed=8)])


@cases
@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_stay_by_themselves(case, dtype, bad):
    op, _, options = CASES[case]
    for columns in (40, 2052, 16390):
        tensors = inputs(case, (5, columns), dtype, grid=True)
        before = [out.cpu() for out in call(case, to_mps(tensors))]
        tensors["x"][2, columns // 2] = bad
        after = [out.cpu() for out in call(case, to_mps(tensors))]
        expected = definition(op, {name: t.double() for name, t in tensors.items()}, **options)
        good = [0, 1, 3, 4]
        for old, new, want in zip(before, after, expected, strict=True):
            assert torch.equal(new[good], old[good])
            assert new[2][want[2].isnan()].isnan().all()
            # Beside an infinity a root mean square leaves zeros, or what fast math makes of them.
            assert torch.all((new[2] == want[2]) | new[2].isnan())
        grads = output_grads(case, (5, columns), dtype)
        found = gradients(case, tensors, grads, False)["x"].cpu()
        assert found[2].isnan().any()
        assert found[good].isfinite().all()


@cases
def test_rows_of_zeros(case):
    tensors = inputs(case, (4, 40), torch.float32)
    for name in ("x", "residual"):
        if name in tensors:
            tensors[name][1:3] = 0
    check_forward(case, tensors, 0.0)
    check_forward(case, tensors)
    grads = output_grads(case, (4, 40), torch.float32)
    check_backward(case, tensors, grads)


@pytest.mark.parametrize("case", ["rms_norm", "layer_norm", "gated_rms_norm_first"])
@pytest.mark.parametrize("columns", [65536, 65537, 131075])
def test_norms_of_very_long_rows(case, columns):
    tensors = inputs(case, (2, columns), torch.float16, grid=True)
    check_forward(case, tensors)
    check_backward(case, tensors, output_grads(case, (2, columns), torch.float16))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1])  # with vectors and without
def test_rows_may_lie_2_to_the_31_elements_apart(offset):
    memory = torch.empty(2**31 + 41, dtype=torch.float16, device="mps")

    def far(values):
        rows = memory.as_strided((2, 40), (2**31, 1), offset)
        rows.copy_(values)
        return rows

    for case in ("layer_norm", "add_rms_norm", "gated_rms_norm"):
        tensors, [grad, *more] = (
            inputs(case, (2, 40), torch.float16, grid=True),
            output_grads(case, (2, 40), torch.float16),
        )
        for name in CASES[case][1].split():
            if name in ("x", "residual", "gate"):
                near = [out.cpu() for out in call(case, to_mps(tensors))]
                found = call(case, to_mps(tensors) | {name: far(tensors[name])})
                assert all(torch.equal(out.cpu(), want) for out, want in zip(found, near, strict=True))
        expected = gradients(case, tensors, [grad, *more], False)
        leaves = {name: t.requires_grad_() for name, t in to_mps(tensors).items()}
        outputs = call(case, leaves)
        found = torch.autograd.grad(outputs, list(leaves.values()), [far(grad), *to_mps(more)])
        for name, got in zip(leaves, found, strict=True):
            assert torch.equal(got.cpu(), expected[name].cpu())


@cases
def test_definitions_pass_gradcheck(case):
    op, _, options = CASES[case]
    tensors = inputs(case, (2, 3, 5), torch.float32)
    leaves = [t.double().requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(lambda *t: definition(op, dict(zip(tensors, t, strict=True)), **options), leaves)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
@dtypes
def test_norms_pass_torchs_own_samples(name, dtype):
    [info] = [op for op in op_db if op.name == f"nn.functional.{name}" or op.name == name]
    done = 0
    for entry in info.sample_inputs("cpu", dtype, requires_grad=False):
        x, (shape, *parameters) = entry.input, entry.args
        names = ("weight", "bias")
        tensors = {"x": x} | {n: p for n, p in zip(names, parameters, strict=False) if isinstance(p, torch.Tensor)}
        tensors |= {n: entry.kwargs[n] for n in names if isinstance(entry.kwargs.get(n), torch.Tensor)}
        eps = entry.kwargs.get("eps")
        eps = {"rms_norm": torch.finfo(dtype).eps, "layer_norm": 1e-5}[name] if eps is None else eps
        doubles = {n: t.double().requires_grad_() for n, t in tensors.items()}
        stock = getattr(F, name)
        if eps < 0:
            with pytest.raises(ValueError, match="expected an eps >= 0"):
                typed(name)(x.to("mps"), eps=eps)
            continue
        expected = stock(doubles["x"], shape, *[doubles.get(n) for n in names[: 1 + (name == "layer_norm")]], eps=eps)
        rows = (*x.shape[: x.dim() - len(shape)], -1)
        leaves = {n: t.detach().to("mps").requires_grad_() for n, t in tensors.items()}
        ours = [t.flatten() if t is not None else None for t in (leaves.get("weight"), leaves.get("bias"))]
        if x.numel() == 0:
            y = typed(name)(leaves["x"].reshape(*rows[:-1], math.prod(shape)), *ours[: 1 + (name == "layer_norm")], eps)
            assert y.numel() == 0
            continue
        y = typed(name)(leaves["x"].reshape(rows), *ours[: 1 + (name == "layer_norm")], eps).view(x.shape)
        spread = expected.detach().square().mean().sqrt()
        assert_accurate(y.detach(), expected.detach(), scale=torch.maximum(expected.detach().abs(), spread))
        grad = random(*x.shape, dtype=dtype, seed=1)
        found = torch.autograd.grad(y, list(leaves.values()), grad.to("mps"))
        for got, want in zip(found, torch.autograd.grad(expected, list(doubles.values()), grad.double()), strict=True):
            # Rows of one or two values have gradients that are all cancellation.
            assert_accurate(got, want, scale=want.abs().max().clamp(min=1.0).expand_as(want), allowed=8.0)
        done += 1
    assert done >= 3


@cases
def test_gradients_compile(case):
    torch._dynamo.reset()
    tensors, grads = inputs(case, (2, 3, 40), torch.float32), output_grads(case, (2, 3, 40), torch.float32)
    expected = gradients(case, tensors, grads, False)
    compiled = torch.compile(typed(CASES[case][0]), fullgraph=True, backend="aot_eager")
    leaves = {name: t.requires_grad_() for name, t in to_mps(tensors).items()}
    outputs = call(case, leaves, function=compiled)
    found = torch.autograd.grad(outputs, list(leaves.values()), to_mps(grads))
    for name, gradient in zip(leaves, found, strict=True):
        assert torch.equal(gradient.cpu(), expected[name].cpu())


@cases
def test_norms_pass_opcheck_with_gradients(case):
    op, names, options = CASES[case]
    tensors = to_mps(inputs(case, (2, 3, 20), torch.float32))
    arguments = [tensors[n].requires_grad_() if n in tensors else None for n in names.split()]
    # Torch's check of how a gradient is registered knows no mps.
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(direct(op).default, (*arguments, EPS), options, test_utils=tests)


def test_the_gradient_of_a_gradient_is_refused():
    x = random(3, 40).to("mps").requires_grad_()
    loss = mpskernels.layer_norm(x).square().sum()
    with pytest.raises(
        NotImplementedError, match=r"mpsk::layer_norm_backward: no gradient for grad, which requires grad"
    ):
        torch.autograd.grad(loss, x, create_graph=True)


def test_norms_from_several_threads():
    def work(seed):
        for case in CASES:
            shape = (3, 5, 40 + 4 * seed)
            tensors, grads = inputs(case, shape, torch.float32, seed=seed, grid=True), []
            grads = output_grads(case, shape, torch.float32)
            found, expected = gradients(case, tensors, grads, False), gradients(case, tensors, grads, True)
            for name, want in expected.items():
                torch.testing.assert_close(found[name].cpu().double(), want, atol=1e-4, rtol=1e-4)

    in_threads(work)


@cases
@pytest.mark.parametrize("columns", [40, 4096, 8192, 16390])
def test_one_launch_forward_and_two_backward(case, columns):
    op = CASES[case][0]
    tensors, grads = inputs(case, (2, 2, columns), torch.float16), output_grads(case, (2, 2, columns), torch.float16)
    _C.reset_launches()
    gradients(case, tensors, grads, False)
    launches = _C.launches()
    forward, backward = launches[op], launches[f"{op}_backward"]
    assert sum(forward.values()) == 1
    kinds = [label.split("?")[0].split("_f16")[0] for label in backward]
    assert (
        sum(backward.values())
        == len(kinds)
        == (1 if len(tensors) == sum(n in "x residual gate" for n in tensors) else 2)
    )
    assert kinds[0] == ("norm_backward_row" if columns <= 16384 else "norm_backward_loop")


def test_every_kernel_is_reached():
    _C.reset_launches()
    for dtype in DTYPE_IDS:
        for columns in (1024, 1028, 4100, 8196, 16388):
            x = random(1, columns, dtype=dtype).to("mps").requires_grad_()
            mpskernels.rms_norm(x, torch.ones(columns, device="mps", requires_grad=True)).sum().backward()
        x = torch.ones(1, 2, 8200, dtype=dtype, device="mps", requires_grad=True)
        mpskernels.group_norm(x, 1).sum().backward()
    reached = {label.split("?")[0] for op in _C.launches().values() for label in op}
    assert reached == {name for name in _C.function_names() if name.startswith("norm_")}


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


def replaced(op, index, value):
    """Sample arguments of an op with one of them replaced."""
    rows, vector, samples = empty(3, 2, 8), empty(8), empty(3, 8)
    arguments = {
        "layer_norm": [rows, vector, vector, EPS],
        "add_rms_norm": [rows, rows, vector, EPS],
        "add_layer_norm": [rows, rows, vector, vector, EPS],
        "gated_rms_norm": [rows, rows, vector, EPS],
        "modulated_norm": [rows, samples, samples, vector, vector, EPS],
        "rms_norm_backward": [rows, rows, vector, EPS, 0.0, True, True],
        "layer_norm_backward": [rows, rows, vector, vector, EPS, True, True],
        "add_rms_norm_backward": [rows, rows, rows, vector, EPS, 0.0, True, True],
        "add_layer_norm_backward": [rows, rows, rows, vector, vector, EPS, True, True],
        "gated_rms_norm_backward": [rows, rows, rows, vector, EPS, True, True, True],
        "modulated_norm_backward": [rows, rows, samples, vector, vector, EPS, False, True, True],
    }[op]
    return (*arguments[:index], value, *arguments[index + 1 :])


def rejections():
    """(op, argument, its index, what it is replaced by, error, text), for every tensor of every op and for eps."""
    elsewhere = {"rms_norm", "group_norm", "group_norm_backward", "qk_norm_rope", "qk_norm_rope_backward"}
    for op in [op for op in SAMPLES if "_norm" in op and op not in elsewhere]:
        x = "residual_out" if op.startswith("add") and "backward" in op else "x"
        for index, argument in enumerate(direct(op).default._schema.arguments):
            name = argument.name
            if name == "eps":
                text = "expected an eps >= 0 that is finite in float32, got -1"
                yield op, name, index, lambda: -1.0, ValueError, text
                continue
            if "Tensor" not in str(argument.type):
                continue
            if name == x:
                text = f"expected {x} of dtype float32, float16 or bfloat16, got int64"
                yield op, name, index, lambda: empty(3, 2, 8, dtype=torch.int64), TypeError, text
                text = f'expected {x} on device mps, got cpu; move it with {x}.to("mps")'
                yield op, name, index, lambda: empty(3, 2, 8, device="cpu"), ValueError, text
            elif name in PARAMETERS:
                text = f"expected {name}.size(-1) == 8 to match {x}.size(-1), got 7"
                yield op, name, index, lambda: empty(7), ValueError, text
                text = f"expected {name}.dim() == 1, got 2"
                yield op, name, index, lambda: empty(1, 8), ValueError, text
                text = f"expected {name} of dtype float32 to match {x}, or float32, got float16"
                yield op, name, index, lambda: empty(8, dtype=torch.float16), TypeError, text
            elif name in MODULATION:
                text = f"expected {name}.size(0) == 3 to match {x}.size(0), got 2"
                yield op, name, index, lambda: empty(2, 8), ValueError, text
                text = f"expected {name}.dim() == 2, got 3"
                yield op, name, index, lambda: empty(3, 1, 8), ValueError, text
            else:
                text = f"expected {name}.size(1) == 2 to match {x}.size(1), got 1"
                yield op, name, index, lambda: empty(3, 1, 8), ValueError, text
                text = f"expected {name}.dim() == 3, got 2"
                yield op, name, index, lambda: empty(6, 8), ValueError, text
                text = f"expected {name} of dtype float32 to match {x}, got float16"
                yield op, name, index, lambda: empty(3, 2, 8, dtype=torch.float16), TypeError, text
                text = f"expected {name} on device mps to match {x}, got meta"
                yield op, name, index, lambda: empty(3, 2, 8, device="meta"), ValueError, text


REJECTED = list(rejections())


@pytest.mark.parametrize("row", REJECTED, ids=lambda row: f"{row[0]}-{row[1]}-{row[5].split()[2]}")
def test_norms_reject(row):
    op, _, index, make, error, text = row
    assert_rejected(op, replaced(op, index, make()), {}, error, f"mpsk::{op}: {text}")


def test_norms_reject_two_dtypes_of_parameters():
    half, full = empty(8, dtype=torch.float16), empty(8)
    text = "mpsk::layer_norm: expected bias of dtype float16 to match weight, got float32"
    assert_rejected("layer_norm", (empty(3, 8, dtype=torch.float16), half, full, EPS), {}, TypeError, text)
    half, full = half.expand(3, 8), full.expand(3, 8)
    text = "mpsk::modulated_norm: expected shift of dtype float16 to match scale, got float32"
    arguments = (empty(3, 8, dtype=torch.float16), half, full, None, None, EPS)
    assert_rejected("modulated_norm", arguments, {}, TypeError, text)


def test_modulation_needs_samples():
    text = "mpsk::modulated_norm: expected x.dim() >= 2, got 1"
    arguments = (empty(8), empty(1, 8), empty(1, 8), None, None, EPS)
    assert_rejected("modulated_norm", arguments, {}, ValueError, text)
