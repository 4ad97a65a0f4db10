"""qk_norm_rope: the norm of each head and its rotation in one launch. Rotations alone are test_rope.py's."""

import math

import pytest
import torch
from cases import assert_accurate, assert_rejected, direct, dtypes, in_threads, random, to_mps
from test_rope import LAYOUTS, angles, heads, layouts
from test_rope import reference as turned

import mpskernels
from mpskernels import _C

SMALLEST_NORMAL = torch.finfo(torch.float32).smallest_normal


def reference(x, weight, cos, sin, eps=1e-6, weight_offset=0.0, interleaved=False):
    """x (batch, heads, length, d), cos and sin (batch or 1, length, pairs), in float64."""
    x = x.double()
    y = x / (x.square().mean(-1, keepdim=True) + max(eps, SMALLEST_NORMAL)).sqrt()
    if weight is not None:
        y = y * (weight.double() + weight_offset)
    return turned(y, cos, sin, interleaved)


def check(q, k=None, weights=(None, None), *, theta=None, cos=None, sin=None, positions=None, eps=1e-6, **options):
    """Of tensors on the CPU: the result and every gradient. `theta`: angles, where they are not those of options."""
    dims = q.size(-1) if options.get("dims") is None else options["dims"]
    if theta is None:
        at = (torch.arange(q.size(2)) if positions is None else positions) + options.get("offset", 0)
        names = ("base", "sections", "interleaved_sections")
        theta = angles(at, dims, **{name: options[name] for name in names if name in options})
    exact = theta.cos(), theta.sin()
    if cos is not None:  # rounded
        exact = tuple(t.to(cos.dtype) for t in exact)
    tensors = [q, k, *weights]
    wide = [None if t is None else t.double().requires_grad_() for t in tensors]
    wanted = [
        reference(x, w, *exact, eps, options.get("weight_offset", 0.0), options.get("interleaved", False))
        for x, w in zip(wide[:2], wide[2:], strict=True)
        if x is not None
    ]
    leaves = [None if t is None else to_mps(t).requires_grad_() for t in tensors]
    outs = mpskernels.qk_norm_rope(*leaves, eps, *to_mps([cos, sin, positions]), **options)
    outs = [outs] if k is None else list(outs)
    grads = [random(*t.shape, dtype=q.dtype, seed=9 + i) for i, t in enumerate(wanted)]
    there = [i for i, t in enumerate(tensors) if t is not None]
    of_wide = torch.autograd.grad(wanted, [wide[i] for i in there], [g.double() for g in grads])
    of_ours = torch.autograd.grad(outs, [leaves[i] for i in there], to_mps(grads))
    limit = 8.0 if q.dtype == torch.float32 else 0.76
    for out, want, x in zip(outs, wanted, tensors, strict=False):
        assert out.is_contiguous()
        assert out.dtype == x.dtype
        assert_accurate(out.detach(), want.detach(), scale=largest(want.detach()), allowed=limit)
    for of_x, want, i in zip(of_ours, of_wide, there, strict=True):
        size = largest(want)
        if i < 2:  # the difference of two terms as large as the first
            of_n = turned(grads[-1 if i else 0].double(), exact[0], -exact[1], options.get("interleaved", False))
            weight = 1.0 if weights[i] is None else weights[i].double() + options.get("weight_offset", 0.0)
            size = size + largest(of_n * weight) / wide[i].detach().square().mean(-1, keepdim=True).sqrt()
        assert of_x.is_contiguous()
        assert of_x.dtype == tensors[i].dtype
        assert of_x.shape == tensors[i].shape
        assert_accurate(of_x, want, scale=size, allowed=8.0 if of_x.dtype == torch.float32 else 0.76)


def largest(x):
    """What rounding is measured by, where sums and differences cancel: the largest number of a row."""
    return x.abs().amax(-1, keepdim=True).expand_as(x) if x.numel() else x


def weights_of(d, dtype):
    return random(d, dtype=dtype, seed=2), random(d, dtype=dtype, seed=3)


@dtypes
@layouts
@pytest.mark.parametrize("d", [2, 6, 8, 20, 64, 72, 80, 128, 256, 384, 512])
def test_qk_norm_rope_matches_reference(dtype, interleaved, d):
    q, k = heads(dtype, d=d)
    check(q, k, weights_of(d, dtype), interleaved=interleaved, offset=1000, weight_offset=1.0)


@dtypes
@layouts
@pytest.mark.parametrize(
    ("d", "dims"), [(64, 32), (64, 0), (33, 32), (80, 20), (7, 2), (5, 0), (256, 64), (510, 2), (512, 0)]
)
def test_qk_norm_rope_turns_the_first_columns(dtype, interleaved, d, dims):
    q, k = heads(dtype, d=d, length=3)
    check(q, k, weights_of(d, dtype), interleaved=interleaved, dims=dims)


@dtypes
def test_qk_norm_rope_takes_weights_of_both_dtypes_and_none(dtype):
    q, k = heads(dtype)
    check(q, k, weights_of(32, torch.float32))
    check(q, k, tuple(w[::2] for w in weights_of(64, dtype)))
    check(q, k)
    check(q, None, (weights_of(32, dtype)[0], None))
    check(q)


@dtypes
@layouts
@pytest.mark.parametrize("layout", [*LAYOUTS, "qkv"])
def test_qk_norm_rope_reads_any_strides(dtype, interleaved, layout):
    if layout == "qkv":  # 4, 2 and 2 heads, of one projection
        q, k, _ = random(2, 5, 8 * 32, dtype=dtype).view(2, 5, 8, 32).transpose(1, 2).split([4, 2, 2], 1)
    else:
        q = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
        k = random(2, 1, 5, 32, dtype=dtype, seed=1).expand(2, 4, 5, 32)
    check(q, k, weights_of(32, dtype), interleaved=interleaved)
    check(k, q, weights_of(32, dtype), interleaved=interleaved, dims=16)


def test_qk_norm_rope_takes_expanded_gradients():
    q, k = to_mps(list(heads(torch.float32)))
    grads = []
    for make in (lambda t: torch.ones(1, device="mps").expand(t.shape), torch.ones_like):
        leaves = [t.detach().requires_grad_() for t in (q, k)]
        grads.append(torch.autograd.grad(mpskernels.qk_norm_rope(*leaves), leaves, [make(q), make(k)]))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*grads, strict=True))


@dtypes
@layouts
def test_qk_norm_rope_takes_positions_and_sections(dtype, interleaved):
    q, k = heads(dtype)
    weights = weights_of(32, dtype)
    positions = torch.randint(0, 5000, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    check(q, k, weights, positions=positions[0], interleaved=interleaved, offset=7)
    check(q, k, weights, positions=positions[0, :1].int(), interleaved=interleaved)
    sections = {"positions": positions, "interleaved": interleaved, "base": 5e5}
    check(q, k, weights, sections=(4, 6, 6), **sections)
    check(q, k, weights, sections=(6, 5, 5), interleaved_sections=True, **sections)


@dtypes
@pytest.mark.parametrize("table", ["same", "f32"])
@pytest.mark.parametrize("pairs", [16, 6])
def test_qk_norm_rope_reads_a_table(dtype, table, pairs):
    q, k = heads(dtype, d=2 * pairs)
    weights = weights_of(2 * pairs, dtype)
    theta = angles(torch.arange(40), 2 * pairs)[0]
    entries = torch.float32 if table == "f32" else dtype
    cos, sin = theta.cos().to(entries), theta.sin().to(entries)
    check(q, k, weights, cos=cos, sin=sin, theta=theta[None, 30:35], offset=30, interleaved=True)
    check(q, k, weights, cos=cos.repeat(1, 2), sin=sin.repeat(1, 2), theta=theta[None, :5])
    check(q, k, weights, cos=cos.T.contiguous().T, sin=sin, theta=theta[None, :5])
    positions = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    check(q, k, weights, cos=cos, sin=sin, positions=positions, theta=theta[positions])
    y = mpskernels.qk_norm_rope(*to_mps([q, None, weights[0], None, 1e-6, cos, sin, torch.tensor([0, 1, 40, -1, 2])]))
    assert y.cpu().isnan().flatten(-1).any(-1)[0, 0].tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 1, 1, 8), (1, 7, 1, 64), (1, 1, 700, 4), (2, 9, 33, 16)])
def test_qk_norm_rope_takes_any_sizes(shape):
    q, k = random(*shape), random(*shape, seed=1)
    check(q, k, weights_of(shape[-1], torch.float32))


@pytest.mark.parametrize("many", [2**17 // 4 - 1, 2**17 // 4, 2**20 // 4])
def test_qk_norm_rope_shares_rotations_among_heads(many):
    # 4 lanes for each head and position: on both sides of each row of the table of choices.
    check(random(1, 15, many // 64, 32), random(1, 49, many // 64, 32, seed=1), weights_of(32, torch.float32))


@pytest.mark.parametrize(
    ("q_shape", "k_shape"), [((0, 2, 3, 8), (0, 1, 3, 8)), ((2, 2, 0, 8), (2, 2, 0, 8)), ((2, 2, 3, 0),) * 2], ids=str
)
def test_qk_norm_rope_of_nothing(q_shape, k_shape):
    shapes = q_shape, k_shape, q_shape[-1:], q_shape[-1:]
    leaves = [torch.empty(shape, device="mps", requires_grad=True) for shape in shapes]
    before = _C.launches()
    q, k = mpskernels.qk_norm_rope(*leaves)
    assert (q.shape, k.shape) == (q_shape, k_shape)
    assert _C.launches() == before
    (q.sum() + k.sum()).backward()
    assert [leaf.grad.shape for leaf in leaves] == list(map(torch.Size, shapes))
    assert not any(leaf.grad.cpu().any() for leaf in leaves)


def test_qk_norm_rope_of_nothing_but_keys():
    k, weights = random(2, 2, 3, 8), weights_of(8, torch.float32)
    check(random(2, 0, 3, 8), k, weights)
    check(k, random(2, 0, 3, 8), weights)


@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("d", [32, 33])
def test_qk_norm_rope_keeps_bad_heads_to_themselves(dtype, bad, d):
    q, k = heads(dtype, d=d)
    grads = to_mps([torch.ones_like(q), torch.ones_like(k)])
    found = []
    for _ in range(2):
        leaves = [t.requires_grad_() for t in to_mps([q, k])]
        outs = mpskernels.qk_norm_rope(*leaves, dims=32)
        found.append([t.detach().cpu() for t in (*outs, *torch.autograd.grad(outs, leaves, grads))])
        q[1, 2, 3, 4] = bad
    for expected, got in zip(*found, strict=True):
        same = (expected == got).all(-1)
        if got.shape == q.shape:
            assert got[1, 2, 3].isnan().any()
            same[1, 2, 3] = True
        assert same.all()


@dtypes
def test_qk_norm_rope_keeps_heads_of_zeros(dtype):
    q, k = heads(dtype)
    q[1, 2] = 0
    for eps in (0.0, 1e-6):
        assert not mpskernels.qk_norm_rope(*to_mps([q, k]), eps=eps)[0][1, 2].cpu().any()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e37),
        (torch.float32, 1e-19),
        (torch.bfloat16, 1e37),
        (torch.float16, 1e4),
        (torch.float16, 1e-4),
    ],
    ids=str,
)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_qk_norm_rope_spans_the_range_of_its_dtype(dtype, size, eps):
    q = (random(1, 2, 3, 64) * size).to(dtype)
    y = mpskernels.qk_norm_rope(to_mps(q), eps=eps)
    theta = angles(torch.arange(3), 64)
    want = reference(q, None, theta.cos(), theta.sin(), eps)
    assert_accurate(y, want, scale=largest(want), allowed=8.0 if dtype == torch.float32 else 0.76)
    # The gradient is that of numbers near 1, divided by their size.
    if size <= 1e4:
        return
    leaf = to_mps(q).requires_grad_()
    grad = random(*q.shape, seed=1, dtype=dtype) * 1e20
    (ours,) = torch.autograd.grad(mpskernels.qk_norm_rope(leaf, eps=eps), leaf, to_mps(grad))
    wide = q.double().requires_grad_()
    (exact,) = torch.autograd.grad(reference(wide, None, theta.cos(), theta.sin(), eps), wide, grad.double())
    assert_accurate(ours, exact, scale=largest(exact), allowed=16.0 if dtype == torch.float32 else 0.76)


def test_qk_norm_rope_rounds_once():
    q, weight = random(1, 4, 64, 128, dtype=torch.float16), random(128, dtype=torch.float16, seed=1)
    theta = angles(torch.arange(64), 128)
    once = reference(q, weight, theta.cos(), theta.sin()).half()
    one = torch.ones(1, 64, 64)
    normed = reference(q, weight, one, 0 * one).half()
    twice = turned(normed, theta.cos(), theta.sin()).half()
    y = mpskernels.qk_norm_rope(to_mps(q), None, to_mps(weight)).cpu()
    assert (twice != once).sum() > 1000
    assert (y != once).sum() < 60


def test_qk_norm_rope_agrees_with_its_parts():
    q, k = to_mps(list(heads(torch.float32, d=128)))
    weights = to_mps(list(weights_of(128, torch.float32)))
    parts = mpskernels.rope(*(mpskernels.rms_norm(x, w, offset=1.0) for x, w in zip((q, k), weights, strict=True)))
    for ours, theirs in zip(mpskernels.qk_norm_rope(q, k, *weights, weight_offset=1.0), parts, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), atol=2e-6, rtol=2e-6)


def test_definition_passes_gradcheck():
    theta = angles(torch.arange(3), 6)

    def definition(x, w):
        return reference(x, w, theta.cos(), theta.sin(), 1e-3, 1.0)

    leaves = [random(*shape).double().requires_grad_() for shape in ((1, 2, 3, 8), (8,))]
    assert torch.autograd.gradcheck(definition, leaves)


@pytest.mark.parametrize("which", range(4))
def test_qk_norm_rope_computes_one_gradient_alone(which):
    tensors = to_mps([*heads(torch.float32), *weights_of(32, torch.float32)])
    every = [t.detach().requires_grad_() for t in tensors]
    sum(t.sum() for t in mpskernels.qk_norm_rope(*every)).backward()
    leaf = tensors[which] = tensors[which].requires_grad_()
    q, k = mpskernels.qk_norm_rope(*tensors)
    (q.sum() + k.sum()).backward()
    assert torch.equal(leaf.grad.cpu(), every[which].grad.cpu())


@dtypes
def test_qk_norm_rope_is_one_launch_and_deterministic(dtype):
    tensors = [t.requires_grad_() for t in to_mps([*heads(dtype, length=70), *weights_of(32, dtype)])]

    def work():
        outs = mpskernels.qk_norm_rope(*tensors)
        return [*outs, *torch.autograd.grad(outs, tensors, [torch.ones_like(t) for t in outs])]

    _C.reset_launches()
    first = work()
    launches = {op: sum(kernels.values()) for op, kernels in _C.launches().items()}
    assert launches == {"qk_norm_rope": 1, "qk_norm_rope_backward": 2}
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, work(), strict=True))


def test_qk_norm_rope_from_several_threads():
    def work(seed):
        d = 8 * (1 + seed)
        check(*heads(torch.float32, d=d), weights_of(d, torch.float32), offset=seed)

    in_threads(work)


def test_qk_norm_rope_reaches_every_kernel():
    _C.reset_launches()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for d in (128, 256, 512):
            q = to_mps(random(1, 1, 1, d, dtype=dtype)).requires_grad_()
            weight = to_mps(random(d, dtype=dtype)).requires_grad_()
            mpskernels.qk_norm_rope(q, None, weight, dims=0).sum().backward()
    ran = {label.split("?")[0] for kernels in _C.launches().values() for label in kernels}
    names = {name for name in _C.function_names() if name.startswith("rope_norm")}
    assert names <= ran
    assert len(names) == 21


def test_qk_norm_rope_compiles_forward_and_backward():
    torch._dynamo.reset()
    compiled = torch.compile(mpskernels.qk_norm_rope, fullgraph=True, backend="aot_eager")
    tensors = [t.requires_grad_() for t in to_mps([*heads(torch.float32), *weights_of(32, torch.float32)])]
    gradients = []
    for function in (compiled, mpskernels.qk_norm_rope):
        q, k = function(*tensors, weight_offset=1.0, offset=4)
        gradients.append(torch.autograd.grad(q.sum() + 2 * k.sum(), tensors))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*gradients, strict=True))


def test_qk_norm_rope_passes_opcheck_with_every_option():
    q, k = to_mps(list(heads(torch.float16)))
    weights = to_mps(list(weights_of(32, torch.float32)))
    table = to_mps([random(9, 16), random(9, 16)])
    positions = to_mps(torch.arange(30).view(3, 2, 5))
    for args, kwargs in [
        ((q, k, *weights, 1e-6, *table), {"offset": 2, "weight_offset": 1.0}),
        ((q, None, None, None, 1e-6, None, None, positions), {"sections": [6, 5, 5], "interleaved_sections": True}),
        ((q, k, None, None, 1e-5), {"dims": 8, "base": 500.0, "interleaved": True}),
    ]:
        torch.library.opcheck(direct("qk_norm_rope").default, args, kwargs)


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


def x(**options):
    return empty(2, 3, 5, 8, **options)


HALF = {"dtype": torch.float16}
REJECTED = {
    "q_none": (lambda: (None, None, None, None, 1e-6), {}, TypeError, "expected q to be a tensor, got None"),
    "q_dimensions": (lambda: (empty(3, 5, 8), None, None, None, 1e-6), {}, ValueError, "expected q.dim() == 4, got 3"),
    "k_dtype": (
        lambda: (x(), x(**HALF), None, None, 1e-6),
        {},
        TypeError,
        "expected k of dtype float32 to match q, got float16",
    ),
    "columns": (
        lambda: (empty(1, 1, 1, 514), None, None, None, 1e-6),
        {"dims": 8},
        NotImplementedError,
        "expected q.size(3) <= 512, got 514",
    ),
    "weight_on_cpu": (
        lambda: (x(), None, empty(8, device="cpu"), None, 1e-6),
        {},
        ValueError,
        'expected q_weight on device mps, got cpu; move it with q_weight.to("mps")',
    ),
    "weight_dtype": (
        lambda: (x(), None, empty(8, **HALF), None, 1e-6),
        {},
        TypeError,
        "expected q_weight of dtype float32 to match q, or float32, got float16",
    ),
    "weight_dtypes": (
        lambda: (x(**HALF), x(**HALF), empty(8, **HALF), empty(8), 1e-6),
        {},
        TypeError,
        "expected k_weight of dtype float16 to match q_weight, got float32",
    ),
    "weight_size": (
        lambda: (x(), x(), empty(8), empty(7), 1e-6),
        {},
        ValueError,
        "expected k_weight.size(0) == 8 to match q.size(3), got 7",
    ),
    "weight_dimensions": (
        lambda: (x(), None, empty(1, 8), None, 1e-6),
        {},
        ValueError,
        "expected q_weight.dim() == 1, got 2",
    ),
    "one_weight": (
        lambda: (x(), x(), empty(8), None, 1e-6),
        {},
        ValueError,
        "expected both q_weight and k_weight, or neither",
    ),
    "weight_of_no_k": (
        lambda: (x(), None, None, empty(8), 1e-6),
        {},
        ValueError,
        "expected no k_weight where there is no k",
    ),
    "odd": (lambda: (x(), None, None, None, 1e-6), {"dims": 3}, ValueError, "expected an even count of dims, got 3"),
    "interleaved_sections": (
        lambda: (x(), None, None, None, 1e-6),
        {"interleaved_sections": True},
        ValueError,
        "expected sections, to interleave",
    ),
    **{
        f"eps_{eps}": (
            lambda eps=eps: (x(), None, None, None, eps),
            {},
            ValueError,
            f"expected an eps >= 0 that is finite in float32, got {eps:g}",
        )
        for eps in (-1.0, math.nan, 1e39)
    },
    "weight_offset": (
        lambda: (x(), None, None, None, 1e-6),
        {"weight_offset": math.inf},
        ValueError,
        "expected a weight_offset that is finite in float32, got inf",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_qk_norm_rope_rejects(case):
    args, kwargs, error, text = REJECTED[case]
    assert_rejected("qk_norm_rope", args(), kwargs, error, f"mpsk::qk_norm_rope: {text}")


BACKWARD_REJECTED = {
    "grad_shape": (lambda: (empty(2, 3, 4, 8), None, x(), None), "expected grad_q.size(2) == 5 to match q, got 4"),
    "grad_k": (lambda: (x(), x(), x(), None), "expected both k and grad_k, or neither"),
    "no_grad_k": (lambda: (x(), None, x(), x()), "expected both k and grad_k, or neither"),
}


@pytest.mark.parametrize("case", BACKWARD_REJECTED)
def test_qk_norm_rope_backward_rejects(case):
    args, text = BACKWARD_REJECTED[case]
    rest = (None, None, 1e-6, None, None, None)
    assert_rejected("qk_norm_rope_backward", (*args(), *rest), {}, ValueError, f"mpsk::qk_norm_rope_backward: {text}")


@pytest.mark.parametrize(("name", "index"), [("cos", 5), ("sin", 6)])
def test_qk_norm_rope_refuses_gradients_of_its_table_and_second_ones(name, index):
    q, cos, sin = to_mps([random(2, 3, 5, 8), random(5, 4), random(5, 4)])
    args = [q, None, None, None, 1e-6, cos, sin]
    args[index].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"mpsk::qk_norm_rope: no gradient for {name}, which requires grad"):
        mpskernels.qk_norm_rope(*args)
    leaf = q.requires_grad_()
    with pytest.raises(NotImplementedError, match="mpsk::qk_norm_rope_backward: no gradient for"):
        torch.autograd.grad(mpskernels.qk_norm_rope(leaf).sum(), leaf, create_graph=True)
