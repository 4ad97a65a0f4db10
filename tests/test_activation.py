import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPE_IDS, assert_accurate, assert_rejected, direct, dtypes, in_threads, random, to_mps

import mpskernels
from mpskernels import _C


def gelu(x):
    """With the complementary error function, which keeps its digits where 1 + erf loses them."""
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def gelu_tanh(x):
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


# name -> (op, its options, the activation in float64, its worst error in eps of float32). The exponent of gelu_tanh, as
# large as 90, is rounded before the exponential is taken. Stock torch has no digits left in the tails of either gelu.
KINDS = {
    "swiglu": ("swiglu", {}, F.silu, 4),
    "geglu": ("geglu", {}, gelu, 8),
    "geglu_tanh": ("geglu", {"approximate": "tanh"}, gelu_tanh, 64),
    "reglu": ("reglu", {}, F.relu, 1),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def allowed(kind, dtype):
    """In eps of the dtype: half an eps for the one rounding of a half, and the error of float32."""
    ulps = KINDS[kind][3]
    return ulps if dtype == torch.float32 else 0.5 + ulps * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps


def gradients(function, tensors, grad):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return out, torch.autograd.grad(out, leaves, grad)


def check(kind, gate, up, packed=False):
    """Forward and backward, on the CPU's tensors; with `packed`, gate and up are the halves of one tensor."""
    op, options, activation, _ = KINDS[kind]
    function = getattr(mpskernels, op)
    grad = random(*gate.shape, dtype=gate.dtype, seed=7)
    expected, (of_gate, of_up) = gradients(lambda g, u: activation(g) * u, [gate.double(), up.double()], grad.double())
    if packed:
        ours, (both,) = gradients(lambda x: function(x, **options), [to_mps(packed_like(gate, up))], to_mps(grad))
        our_gate, our_up = both.chunk(2, -1)
        assert both.is_contiguous()
    else:
        ours, (our_gate, our_up) = gradients(lambda g, u: function(g, u, **options), to_mps([gate, up]), to_mps(grad))
        assert our_gate.is_contiguous()
        assert our_up.is_contiguous()
    assert ours.is_contiguous()
    assert ours.dtype == our_gate.dtype == our_up.dtype == gate.dtype
    limit = allowed(kind, gate.dtype)
    assert_accurate(ours.detach(), expected.detach(), allowed=limit)
    # The slope crosses zero, where it is a difference of numbers as large as 1.
    assert_accurate(our_gate, of_gate, scale=grad.double() * up.double(), allowed=max(limit, 0.7))
    assert_accurate(our_up, of_up, allowed=limit)


def packed_like(gate, up):
    return torch.cat([gate, up], -1)


SHAPES = [
    (),
    (1,),
    (7,),
    (8,),
    (64,),
    (1000,),
    (5, 3),
    (3, 16),
    (4, 40),
    (2, 3, 24),
    (2049,),
    (33, 72),
    (2, 0, 4),
    (0,),
]


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_matches_reference(kind, dtype, shape):
    gate, up = 3 * random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    check(kind, gate, up)
    if shape:
        check(kind, gate, up, packed=True)


LAYOUTS = {
    "transposed": lambda t: t(24, 6).T,
    "sliced_columns": lambda t: t(6, 48)[:, ::2],
    "sliced_rows": lambda t: t(12, 24)[::2],
    "offset_aligned": lambda t: t(6, 48)[:, 24:],
    "offset_unaligned": lambda t: t(6 * 24 + 1)[1:].view(6, 24),
    "expanded": lambda t: t(1, 24).expand(6, 24),
    "columns_expanded": lambda t: t(6, 1).expand(6, 24),
    "heads": lambda t: t(2, 5, 3, 8).transpose(1, 2),
    "many_dimensions": lambda t: t(*[2, 3] * 8)[::1, ::2, :, ::2, :, ::2, :, ::2, :, ::2, :, ::2, :, ::2, :, ::2],
}


@dtypes
@pytest.mark.parametrize("which", ["gate", "up", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gated_reads_any_strides(dtype, layout, which):
    gate = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
    up = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype, seed=1))
    check("swiglu", gate.contiguous() if which == "up" else gate, up.contiguous() if which == "gate" else up)


@dtypes
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "many_dimensions"])
def test_packed_reads_any_strides(dtype, layout):
    x = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
    y = mpskernels.geglu(to_mps(x))
    gate, up = x.double().chunk(2, -1)
    assert_accurate(y, gelu(gate) * up)


@dtypes
@kinds
def test_gated_gradient_takes_any_strides(dtype, kind):
    op, options, activation, _ = KINDS[kind]
    gate, up, grad = (random(6, 8, dtype=dtype, seed=seed) for seed in range(3))
    for layout in (lambda t: t, lambda t: t[:1].expand(6, 8), lambda t: t.T.contiguous().T):
        _, expected = gradients(lambda g, u: activation(g) * u, [gate.double(), up.double()], layout(grad).double())
        ours = direct(f"{op}_backward")(*to_mps([layout(grad), gate, up]), **options)
        assert_accurate(ours[0], expected[0], scale=layout(grad).double() * up.double())
        assert_accurate(ours[1], expected[1])


@kinds
def test_gated_over_the_range_of_float32(kind):
    # Every exponent, both signs, and what lies between.
    exponents = torch.arange(-126, 127, dtype=torch.float64)
    gate = torch.cat([s * m * 2**exponents for s in (1, -1) for m in (1.0, 1.2345, 1.9)]).float()
    tails = torch.linspace(-20, 20, 4001)
    for x in (gate, tails):
        op, options, activation, _ = KINDS[kind]
        ours = getattr(mpskernels, op)(*to_mps([x, torch.ones_like(x)]), **options)
        expected = activation(x.double())
        normal = expected.abs() > 1e-36  # below, fp32 flushes
        assert normal.sum() > x.numel() // 3
        scale = torch.where(normal, expected, torch.inf)
        assert_accurate(ours, expected, scale=scale, allowed=allowed(kind, torch.float32))


@kinds
@dtypes
def test_gated_passes_on_what_is_not_finite(kind, dtype):
    gate = torch.tensor([math.nan, -math.nan, math.inf, 1.0, 1.0, 0.0, -0.0, 60000.0, -60000.0], dtype=dtype)
    up = torch.tensor([1.0, 1.0, 2.0, math.nan, math.inf, 3.0, 3.0, 1.0, 1.0], dtype=dtype)
    op, options, activation, _ = KINDS[kind]
    ours = getattr(mpskernels, op)(*to_mps([gate, up]), **options).cpu()
    torch.testing.assert_close(
        ours.double(), (activation(gate.double()) * up.double()).to(dtype).double(), equal_nan=True
    )


@dtypes
def test_a_flat_relu_ends_what_is_not_finite_as_torch_does(dtype):
    values = [math.nan, math.inf, -math.inf, 1.0, -1.0, 0.0, -0.0]
    gate, up, grad = (t.flatten() for t in torch.meshgrid(*[torch.tensor(values, dtype=dtype)] * 3, indexing="ij"))
    expected = gradients(lambda g, u: F.relu(g) * u, [gate.double(), up.double()], grad.double())
    ours = gradients(mpskernels.reglu, to_mps([gate, up]), to_mps(grad))
    for got, want in zip([ours[0], *ours[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=0, equal_nan=True)


def test_gated_needs_no_memory_but_its_result():
    gate, up = to_mps([random(64, 64), random(64, 64)])
    before = _C.launches().get("swiglu", {})
    y = mpskernels.swiglu(gate.requires_grad_(), up)
    assert sum(_C.launches()["swiglu"].values()) == sum(before.values()) + 1  # one launch
    kept = [t.data_ptr() for t in y.grad_fn.saved_tensors]
    assert set(kept) == {gate.data_ptr(), up.data_ptr()}


@dtypes
def test_gated_is_deterministic(dtype):
    gate, up = to_mps([random(37, 41, dtype=dtype), random(37, 41, dtype=dtype, seed=1)])
    assert torch.equal(mpskernels.geglu(gate, up).cpu(), mpskernels.geglu(gate, up).cpu())


def test_gated_gradcheck():
    # Of the definition that the tests hold the ops to.
    for _, _, activation, _ in KINDS.values():
        leaves = [random(3, 4).double().requires_grad_(), random(3, 4, seed=1).double().requires_grad_()]
        assert torch.autograd.gradcheck(lambda g, u, a=activation: a(g) * u, leaves)


def test_gated_from_several_threads():
    def work(seed):
        for kind in KINDS:
            check(kind, random(5, 40, seed=seed), random(5, 40, seed=seed + 9), packed=seed % 2 == 0)

    in_threads(work)


def test_gated_reaches_every_kernel():
    for op in ("swiglu", "swiglu_backward"):
        _C.reset_launches()
        for dtype in DTYPE_IDS:
            args = to_mps([random(2, 8, dtype=dtype)] * (2 if op == "swiglu" else 3))
            direct(op)(*args)
        ran = {label.split("?")[0] for label in _C.launches()[op]}
        assert ran == {f"gated_{'backward' if 'backward' in op else 'forward'}_{name}" for name in DTYPE_IDS.values()}


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


REJECTED = {
    "gate_on_cpu": (
        "swiglu",
        lambda: (empty(4, device="cpu"), None),
        ValueError,
        'expected gate on device mps, got cpu; move it with gate.to("mps")',
    ),
    "up_on_cpu": (
        "reglu",
        lambda: (empty(4), empty(4, device="cpu")),
        ValueError,
        'expected up on device mps, got cpu; move it with up.to("mps")',
    ),
    "up_on_meta": (
        "swiglu",
        lambda: (empty(4), empty(4, device="meta")),
        ValueError,
        "expected up on device mps to match gate, got meta",
    ),
    "gate_dtype": (
        "geglu",
        lambda: (empty(4, dtype=torch.int32), None),
        TypeError,
        "expected gate of dtype float32, float16 or bfloat16, got int32",
    ),
    "up_dtype": (
        "swiglu",
        lambda: (empty(4), empty(4, dtype=torch.float16)),
        TypeError,
        "expected up of dtype float32 to match gate, got float16",
    ),
    "gate_none": ("swiglu", lambda: (None, None), TypeError, "expected gate to be a tensor, got None"),
    "shapes": (
        "swiglu",
        lambda: (empty(3, 4), empty(3, 5)),
        ValueError,
        "expected up.size(1) == 4 to match gate, got 5",
    ),
    "no_broadcasting": ("swiglu", lambda: (empty(3, 4), empty(4)), ValueError, "expected up.dim() == 2, got 1"),
    "odd": (
        "swiglu",
        lambda: (empty(3, 5), None),
        ValueError,
        "expected an even gate.size(-1) where there is no up, got 5",
    ),
    "packed_scalar": ("swiglu", lambda: (empty(), None), ValueError, "expected gate.dim() >= 1, got 0"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_gated_rejects(case):
    op, args, error, text = REJECTED[case]
    assert_rejected(op, args(), {}, error, f"mpsk::{op}: {text}")


def test_geglu_rejects_another_approximation():
    text = 'mpsk::geglu: expected approximate to be "none" or "tanh", got "sigmoid"'
    assert_rejected("geglu", (empty(4),), {"approximate": "sigmoid"}, ValueError, text)


@pytest.mark.parametrize(
    ("grad", "error", "text"),
    [
        (lambda: empty(3, 4), ValueError, "expected grad.size(1) == 2 to match gate, got 4"),
        (lambda: empty(2), ValueError, "expected grad.dim() == 2, got 1"),
        (
            lambda: empty(3, 2, dtype=torch.float16),
            TypeError,
            "expected grad of dtype float32 to match gate, got float16",
        ),
        (
            lambda: empty(3, 2, device="cpu"),
            ValueError,
            'expected grad on device mps, got cpu; move it with grad.to("mps")',
        ),
    ],
)
def test_gated_backward_rejects(grad, error, text):
    assert_rejected("swiglu_backward", (grad(), empty(3, 4), None), {}, error, f"mpsk::swiglu_backward: {text}")


def test_gated_rejects_what_its_params_cannot_hold():
    x = to_mps(random(*[2] * 17).as_strided([2] * 17, [3**0] * 17))
    with pytest.raises(
        NotImplementedError, match="expected at most 16 dimensions that no single stride describes, got 17"
    ):
        mpskernels.swiglu(x, x)


def test_gradient_of_the_gradient_is_refused():
    gate = torch.ones(4, device="mps", requires_grad=True)
    with pytest.raises(NotImplementedError, match="mpsk::swiglu_backward: no gradient for gate"):
        torch.autograd.grad(mpskernels.swiglu(gate, gate).sum(), gate, create_graph=True)
