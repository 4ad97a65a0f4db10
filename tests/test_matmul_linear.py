"""mpsk::linear and mpsk::gated_linear, and the gradients of the matmul family."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, assert_accurate, assert_rejected, direct, dtypes, random, to_mps
from test_matmul import check

import mpskernels
from mpskernels import _C, nn

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def launched(op, call):
    """The pipelines of an op that a call launches, and what it returns."""
    before = _C.launches().get(op, {})
    result = call()
    return [label for label, count in _C.launches().get(op, {}).items() if count != before.get(label, 0)], result


def assert_close(out, expected, terms, k):
    """`terms`: the sum of the absolute values that were added up, k of them, in float32."""
    info = torch.finfo(out.dtype)
    sums = terms * (4 * math.sqrt(max(1, k)) + 8) * 2**-24  # and 8 roundings of an activation and what follows
    assert_accurate(out, expected, scale=(0.51 * info.eps * expected.abs() + sums) / info.eps, allowed=1.0)


def check_linear(x, weight, bias=None, *, activation="none", residual=None):
    call = {"activation": activation, "residual": None if residual is None else to_mps(residual)}
    out = mpskernels.linear(*to_mps((x, weight, bias)), **call)
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    expected = ACTIVATIONS[activation](F.linear(*wide))
    terms = F.linear(*(None if t is None else t.abs() for t in wide))
    if residual is not None:
        expected, terms = expected + residual.double(), terms + residual.double().abs()
    assert_close(out, expected, 1.2 * terms, x.size(-1))
    return out


SHAPES = [
    (1, 7, 5),
    (1, 130, 600),
    (3, 33, 70),
    (7, 50, 40),
    (20, 12, 64),
    (33, 65, 40),
    (64, 70, 3000),
    (300, 270, 33),
]


@dtypes
@activations
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_linear_matches_reference(dtype, activation, m, n, k):
    x, weight, bias = random(m, k, dtype=dtype), random(n, k, dtype=dtype, seed=1), random(n, dtype=dtype, seed=2)
    weight = weight / math.sqrt(k)
    residual = random(m, n, dtype=dtype, seed=3)
    check_linear(x, weight, bias, activation=activation, residual=residual)
    check_linear(x, weight, bias, activation=activation)
    check_linear(x, weight, activation=activation, residual=residual)


@activations
def test_activations_over_their_range(activation):
    x = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    out = mpskernels.linear(*to_mps((x[:, None], torch.ones(1, 1))), activation=activation)[:, 0]
    expected = ACTIVATIONS[activation](x.double())
    # Tails below the smallest normal float32 times x may be lost.
    assert_accurate(out, expected, scale=expected.abs() + 1e-6 * x.double().abs().clamp(max=10) + 1e-35, allowed=16)


@activations
def test_slopes_of_activations_are_as_accurate_as_torchs(activation):
    """In float32, where neither is 0 nor 1: 1.05 times the root mean square error of stock torch's on a CPU, and half
    an eps more than its worst."""
    x = torch.linspace(-10, 10, 20_001)

    def slopes(dtype):
        leaf = x.clone().to(dtype).requires_grad_()
        ACTIVATIONS[activation](leaf).sum().backward()
        return leaf.grad

    leaf = to_mps(x)[:, None].requires_grad_()
    mpskernels.linear(leaf, to_mps(torch.ones(1, 1)), activation=activation).sum().backward()
    errors = [slope.double() - slopes(torch.float64) for slope in (leaf.grad[:, 0].cpu(), slopes(torch.float32))]
    ours, stock = (error.square().mean().sqrt().item() * 2**23 for error in errors)
    worst, worst_of_stock = (error.abs().max().item() * 2**23 for error in errors)
    print(f"root mean square {ours:.3f} eps, stock's {stock:.3f}; worst {worst:.3f} eps, stock's {worst_of_stock:.3f}")
    assert ours <= 1.05 * stock
    assert worst <= worst_of_stock + 0.5


@dtypes
def test_a_flat_relu_ends_what_is_not_finite_as_torch_does(dtype):
    values = torch.tensor([math.nan, math.inf, -math.inf, 1.0, -1.0, 0.0, -0.0], dtype=dtype)
    x, grad = (t.reshape(-1, 1) for t in torch.meshgrid(values, values, indexing="ij"))
    weight = torch.ones(1, 1, dtype=dtype)
    leaf, on_mps = x.double().requires_grad_(), to_mps(x).requires_grad_()
    F.relu(F.linear(leaf, weight.double())).backward(grad.double())
    mpskernels.linear(on_mps, to_mps(weight), activation="relu").backward(to_mps(grad))
    torch.testing.assert_close(on_mps.grad.cpu().double(), leaf.grad, rtol=0, atol=0, equal_nan=True)


@dtypes
def test_linear_keeps_nan_and_inf(dtype):
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=dtype)[:, None]
    weight = torch.ones(5, 1, dtype=dtype)
    for activation in ("none", "relu"):
        out = mpskernels.linear(*to_mps((x, weight)), activation=activation).cpu()
        expected = ACTIVATIONS[activation](x @ weight.T)
        torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=0)


def test_linear_reads_any_strides():
    k, n = 24, 20
    weights = [random(n, k, seed=1), random(k, n, seed=1).T, random(n, 2 * k, seed=1)[:, ::2]]
    bias = random(3 * n, seed=2)[::3]
    for x, weight in itertools.product(
        [
            random(2, 3, 8, k),
            random(3, 2, 8, k).transpose(0, 1),
            random(2, 8, 3, k).transpose(1, 2),
            random(1, 1, 8, k).expand(2, 3, 8, k),
            random(2, 3, 8, 2 * k)[..., ::2],
        ],
        weights,
    ):
        for residual in [
            random(2, 3, 8, n, seed=3),
            random(3, 8, n, 2, seed=3).permute(3, 0, 1, 2),
            random(2, 3, 1, n, seed=3).expand(2, 3, 8, n),
            random(n, seed=3).expand(2, 3, 8, n),
        ]:
            check_linear(x, weight, bias, activation="silu", residual=residual)
    check_linear(random(k), weights[0], bias, residual=random(n, seed=3))
    check_linear(random(40, k), random(3, k, seed=1), random(3), residual=random(3, 40).T)  # swapped: few columns


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (40, 50, 0), (0, 0, 0)])
def test_linear_handles_edges(m, n, k):
    for dtype in DTYPES.values():
        x, weight, bias = random(m, k, dtype=dtype), random(n, k, dtype=dtype), random(n, dtype=dtype, seed=2)
        check_linear(x, weight, bias, activation="gelu", residual=random(m, n, dtype=dtype, seed=3))


def test_linear_is_one_launch():
    x, weight = to_mps((random(64, 40), random(96, 40)))
    labels, _ = launched("linear", lambda: mpskernels.linear(x, weight, x.new_ones(96), activation="gelu"))
    assert len(labels) == 1


# m, n, k whose tiles do not come out even on a chip of 10 cores: of all columns of tiles k is split, or of the last.
SPLIT = [(17, 33, 4096), (17, 96, 4096), (100, 33, 4096), (54, 482, 768)]


@dtypes
@pytest.mark.parametrize(("m", "n", "k"), SPLIT)
def test_linear_finishes_columns_whose_k_is_split_and_those_before_alike(dtype, m, n, k):
    x, weight = random(m, k, dtype=dtype), random(n, k, dtype=dtype, seed=1) / math.sqrt(k)
    bias, residual = random(n, dtype=dtype, seed=2), random(m, n, dtype=dtype, seed=3)
    check_linear(x, weight, bias, activation="gelu", residual=residual)
    check_linear(x, weight)
    check_linear(x, weight.T.contiguous().T, residual=residual.T.contiguous().T)
    check(random(2, m, k, dtype=dtype), random(2, k, n, dtype=dtype, seed=1))  # of a batch: of all columns, or of none


@pytest.mark.skipif(not _C.tensor_units_problem(), reason="M5 chooses other grids")
def test_k_is_split_for_cores_that_would_idle():
    def grid(m, n, k):
        x, weight = to_mps((random(m, k), random(n, k)))
        labels, _ = launched("linear", lambda: mpskernels.linear(x, weight, x.new_ones(n)))
        return sorted((label.split("_f32")[0], "partial=1" in label, "bias=1" in label) for label in labels)

    assert grid(17, 33, 4096) == [("matmul_sum", False, True), ("matmul_tile", True, False)]  # of all columns
    assert grid(54, 482, 768) == [("matmul_sum", False, True), ("matmul_tile", True, True)]  # of the last
    assert grid(160, 256, 1024) == [("matmul_tile", False, True)]  # 40 tiles of 32x32


def check_gated(x, w_gate, w_up, activation):
    out = mpskernels.gated_linear(*to_mps((x, w_gate, w_up)), activation=activation)
    x, w_gate, w_up = x.double(), w_gate.double(), w_up.double()
    gate, up = ACTIVATIONS[activation](F.linear(x, w_gate)), F.linear(x, w_up)
    terms = 1.2 * F.linear(x.abs(), w_gate.abs()) * up.abs() + gate.abs() * F.linear(x.abs(), w_up.abs())
    assert_close(out, gate * up, terms, x.size(-1))


@pytest.mark.parametrize(("m", "tile"), [(8, 16), (16, 16), (32, 32), (64, 64)])
def test_gated_linear_of_few_rows_takes_tiles_of_few_rows(m, tile):
    n = 40 * 32  # tiles of 64 rows fill a chip of 10 cores as well
    x, w_gate, w_up = random(m, 24), random(n, 24), random(n, 24, seed=2)
    labels, _ = launched("gated_linear", lambda: mpskernels.gated_linear(*to_mps((x, w_gate, w_up))))
    assert [label.split("_bn")[0] for label in labels] == [f"matmul_gated_f32_bm{tile}"]
    check_gated(x, w_gate, w_up, "silu")


@dtypes
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (700, 300, 24), (33, 512, 512)])
def test_gated_linear_matches_reference(dtype, activation, m, n, k):
    x, w_gate, w_up = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(m, k), (n, k), (n, k)]))
    check_gated(x, w_gate / math.sqrt(k), w_up / math.sqrt(k), activation)


@dtypes
def test_what_gated_linear_saves_is_there_of_all_columns(dtype):
    x = random(33, 512, dtype=dtype)
    w_gate, w_up = (random(512, 512, dtype=dtype, seed=seed) for seed in (1, 2))
    _, *saved = torch.ops.mpsk.gated_linear_saving(*to_mps((x, w_gate, w_up)), "silu")  # k of the last ones is split
    for found, weight in zip(saved, (w_gate, w_up), strict=True):
        expected, terms = F.linear(x.double(), weight.double()), F.linear(x.double().abs(), weight.double().abs())
        assert_close(found, expected, terms, 512)


def test_gated_linear_reads_any_strides():
    packed = random(40, 24, seed=1)  # of one matrix, as models pack them
    check_gated(random(3, 5, 24), packed[:20], packed[20:], "silu")
    check_gated(random(3, 5, 24), packed[::2], packed[1::2], "silu")
    check_gated(random(5, 3, 24).transpose(0, 1), random(24, 20).T, packed[20:], "silu")
    check_gated(random(24), packed[:20], packed[20:], "silu")
    check_gated(random(2, 3, 24), packed[:0], packed[:0], "silu")
    check_gated(random(2, 3, 0), packed[:, :0], packed[:, :0], "silu")


# --- gradients --------------------------------------------------------------------------------------------------------


def gradients(function, tensors, grad):
    leaves = [t.detach().clone().requires_grad_() if t is not None else None for t in tensors]
    function(*leaves).backward(grad)
    return [None if leaf is None else leaf.grad for leaf in leaves]


def check_gradients(ours, stock, tensors, tolerance):
    """Against fp64: the worst error of each gradient, in eps of the dtype times its largest value."""
    dtype = tensors[0].dtype
    wide = [None if t is None else t.double() for t in tensors]
    grad = random(*stock(*wide).shape, dtype=dtype, seed=9)
    expected = gradients(stock, wide, grad.double())
    actual = gradients(ours, to_mps(tensors), to_mps(grad))
    for got, want in zip(actual, expected, strict=True):
        if want is None:
            assert got is None
            continue
        assert (got.shape, got.dtype, got.device.type) == (want.shape, dtype, "mps")
        if want.numel():
            error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-30)
            assert error <= tolerance * torch.finfo(dtype).eps


@dtypes
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((5, 7), (7, 9)),
        ((3, 5, 7), (3, 7, 9)),
        ((3, 5, 7), (7, 9)),
        ((5, 7), (3, 7, 9)),
        ((2, 1, 5, 7), (3, 7, 9)),
        ((2, 3, 5, 7), (2, 1, 7, 9)),
        ((4, 1, 5, 7), (1, 3, 7, 9)),
        ((7,), (7, 9)),
        ((7,), (3, 7, 9)),
        ((5, 7), (7,)),
        ((3, 5, 7), (7,)),
        ((7,), (7,)),
        ((5, 0), (0, 9)),
        ((0, 7), (7, 9)),
        ((3, 0, 7), (7, 9)),
        ((40, 1200), (1200, 33)),
        ((8, 300, 40), (40, 50)),
    ],
    ids=str,
)
def test_matmul_gradient_matches_reference(dtype, a_shape, b_shape):
    tensors = random(*a_shape, dtype=dtype), random(*b_shape, dtype=dtype, seed=1)
    # Measured: 4.0 where 1200 products of float32 are added up, 0.43 where they are rounded once.
    check_gradients(mpskernels.matmul, torch.matmul, tensors, 8 if dtype == torch.float32 else 1)


def test_matmul_gradient_of_views():
    a, b = random(6, 5, 4), random(6, 9, 4, seed=1)
    for view_a, view_b in [
        (lambda a: a.transpose(0, 1), lambda b: b.permute(1, 2, 0)[:5]),
        (lambda a: a[::2], lambda b: b[::2].mT),
        (lambda a: a[0].expand(6, 5, 4), lambda b: b.mT),
    ]:
        if view_a(a).size(-1) != view_b(b).size(-2):
            continue
        check_gradients(
            lambda a, b, f=view_a, g=view_b: mpskernels.matmul(f(a), g(b)),
            lambda a, b, f=view_a, g=view_b: torch.matmul(f(a), g(b)),
            (a, b),
            2,  # measured: 0.71
        )


def test_matmul_has_a_second_gradient():
    def second(matmul, a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        [of_a] = torch.autograd.grad(matmul(a, b).pow(2).sum(), a, create_graph=True)
        return torch.autograd.grad(of_a.pow(2).sum(), (a, b))

    a, b = random(3, 5, 4), random(4, 6, seed=1)
    expected = second(torch.matmul, a.double(), b.double())
    for got, want in zip(second(mpskernels.matmul, *to_mps((a, b))), expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("x_shape", "features"), [((2, 3, 5), 0), ((2, 0, 0), 4), ((0, 3, 0), 4), ((0,), 4)], ids=str)
def test_gradients_of_nothing(x_shape, features):
    x, weight = (torch.ones(shape, device="mps") for shape in (x_shape, (features, x_shape[-1])))
    for layer in (mpskernels.linear, lambda x, weight: mpskernels.gated_linear(x, weight, weight)):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        layer(*leaves).sum().backward()
        assert [leaf.grad.shape for leaf in leaves] == [x.shape, weight.shape]
        assert not any(leaf.grad.any() for leaf in leaves)


def test_linear_without_activation_has_a_second_gradient():
    def second(linear, *leaves):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        first = torch.autograd.grad(linear(*leaves).pow(3).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)]

    tensors = random(3, 5, 4), random(6, 4, seed=1), random(6, seed=2)
    expected = second(F.linear, *(t.double() for t in tensors))
    for got, want in zip(second(mpskernels.linear, *to_mps(tensors)), expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-3 * want.abs().max().item())


@dtypes
@activations
@pytest.mark.parametrize("parts", ["all", "bias", "residual", "none"])
def test_linear_gradient_matches_reference(dtype, activation, parts):
    def linear(x, weight, bias, residual):
        return mpskernels.linear(x, weight, bias, activation=activation, residual=residual)

    def stock(x, weight, bias, residual):
        out = ACTIVATIONS[activation](F.linear(x, weight, bias))
        return out if residual is None else out + residual

    tolerance = 6 if dtype == torch.float32 else 1.5  # measured: 2.5, and 0.63 of what is rounded two times
    for shape, n in [((2, 3, 24), 20), ((24,), 20), ((300, 24), 40), ((0, 24), 20)]:
        x, weight = random(*shape, dtype=dtype), random(n, 24, dtype=dtype, seed=1) / 5
        bias = random(n, dtype=dtype, seed=2) if parts in ("all", "bias") else None
        residual = random(*shape[:-1], n, dtype=dtype, seed=3) if parts in ("all", "residual") else None
        check_gradients(linear, stock, (x, weight, bias, residual), tolerance)


@dtypes
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_linear_gradient_matches_reference(dtype, activation):
    def gated(x, w_gate, w_up):
        return mpskernels.gated_linear(x, w_gate, w_up, activation=activation)

    def stock(x, w_gate, w_up):
        return ACTIVATIONS[activation](F.linear(x, w_gate)) * F.linear(x, w_up)

    tolerance = 6 if dtype == torch.float32 else 2  # measured: 2.0, and 0.88 of what is rounded three times
    for shape in [(2, 3, 24), (24,), (300, 24), (0, 24)]:
        weights = [random(40, 24, dtype=dtype, seed=seed) / 5 for seed in (1, 2)]
        check_gradients(gated, stock, (random(*shape, dtype=dtype), *weights), tolerance)


def copies(call):
    """The copies that torch makes for a call, whoever asks for them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = call()
    assert any(event.name.startswith("mpsk::") for event in profile.events())
    return out, [event.name for event in profile.events() if event.name in ("aten::copy_", "aten::clone")]


@dtypes
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((3, 5, 8), (8, 16)),
        ((5, 8), (3, 8, 16)),
        ((2, 1, 5, 8), (3, 8, 16)),
        ((4, 1, 2, 24, 64), (1, 3, 1, 64, 16)),
        ((64, 1, 20, 40), (1, 2, 40, 48)),
        ((0, 5, 8), (8, 16)),
    ],
    ids=str,
)
def test_gradients_of_broadcast_operands_are_summed_without_copies(dtype, a_shape, b_shape):
    a, b = random(*a_shape, dtype=dtype), random(*b_shape, dtype=dtype, seed=1)
    grad = random(*torch.matmul(a, b).shape, dtype=dtype, seed=2)

    def gradients(matmul, a, b, grad):
        a, b = (t.detach().requires_grad_() for t in (a, b))
        return torch.autograd.grad(matmul(a, b), (a, b), grad)

    on_mps = to_mps((a, b, grad))
    actual, copied = copies(lambda: gradients(mpskernels.matmul, *on_mps))
    assert not copied
    for got, want in zip(actual, gradients(torch.matmul, a.double(), b.double(), grad.double()), strict=True):
        assert got.shape == want.shape
        if want.numel():
            error = (got.cpu().double() - want).abs().max() / torch.finfo(dtype).eps
            assert error <= (12 if dtype == torch.float32 else 0.51) * want.abs().max()


@dtypes
@activations
@pytest.mark.parametrize(
    ("shape", "permuted"),
    [
        ((3, 40), (1, 0)),
        ((40, 3), (1, 0)),
        ((2, 5, 3, 4), (1, 3, 0, 2)),
        ((5, 1, 9, 2), (3, 1, 2, 0)),
        ((0, 3), (1, 0)),
    ],
    ids=str,
)
def test_layers_of_rows_that_no_stride_describes_copy_nothing(dtype, activation, shape, permuted):
    """x, the residual and the gradient of out lie in other orders than out."""
    k, n = 24, 16
    order = (*permuted, len(permuted))
    x, residual, grad = (random(*shape, size, dtype=dtype, seed=i).permute(order) for i, size in enumerate((k, n, n)))
    weight, bias = random(n, k, dtype=dtype, seed=3) / 5, random(n, dtype=dtype, seed=4)
    second = random(n, k, dtype=dtype, seed=5) / 5

    def run(function, *tensors, grad):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    activate = ACTIVATIONS[activation]
    for ours, stock, tensors in [
        (
            lambda x, w, b, r: mpskernels.linear(x, w, b, activation=activation, residual=r),
            lambda x, w, b, r: activate(F.linear(x, w, b)) + r,
            (x, weight, bias, residual),
        ),
        (
            lambda x, v, w: mpskernels.gated_linear(x, v, w, activation=activation),
            lambda x, v, w: activate(F.linear(x, v)) * F.linear(x, w),
            (x, weight, second),
        ),
    ]:
        on_mps, its_grad = to_mps(tensors), to_mps(grad)
        actual, copied = copies(lambda t=on_mps, g=its_grad, ours=ours: run(ours, *t, grad=g))
        assert not copied
        for got, want in zip(actual, run(stock, *(t.double() for t in tensors), grad=grad.double()), strict=True):
            assert got.shape == want.shape
            if want.numel():
                error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-30)
                assert error <= (6 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps


@dtypes
def test_sums_of_products_may_be_split_between_terms(dtype):
    """One tile of out, and as many terms as splits need."""
    whole, b = random(40, 16, 9, 24, dtype=dtype), random(40, 8, 24, 16, dtype=dtype, seed=1)
    a = whole[:, ::2]
    on_mps = to_mps((whole, b))
    on_mps = on_mps[0][:, ::2], on_mps[1]
    _C.reset_launches()
    out = torch.ops.mpsk.sum_matmuls(*on_mps, 2)
    assert sum(_C.launches()["sum_matmuls"].values()) == 2
    expected = (a.double() @ b.double()).sum((0, 1))
    scale = (a.double().abs() @ b.double().abs()).sum((0, 1))
    error = (out.cpu().double() - expected).abs() / (expected.abs() + 2**-24 * scale / torch.finfo(dtype).eps)
    assert error.max() <= 4 * torch.finfo(dtype).eps
    assert torch.equal(out.cpu(), torch.ops.mpsk.sum_matmuls(*on_mps, 2).cpu())


@pytest.mark.parametrize("strided", [lambda t: t, lambda t: t.mT.contiguous().mT])
def test_sums_of_products_of_nothing_are_zeros(strided):
    for batch, k in [(3, 0), (0, 4), (0, 0), (1, 0)]:
        a, b = strided(random(batch, 4, 8)[..., :k]), strided(random(batch, 8, 5)[:, :k])
        assert torch.equal(torch.ops.mpsk.sum_matmuls(*to_mps((a, b)), 1).cpu(), torch.zeros(4, 5))
    x = to_mps(random(2, 5, 8))[..., :0].mT  # two times no rows, which no stride describes
    weight = to_mps(random(6, 5)).requires_grad_()
    mpskernels.linear(x, weight).sum().backward()
    assert torch.equal(weight.grad.cpu(), torch.zeros(6, 5))


def test_sums_of_products_are_summed_as_said():
    a, b = random(2, 3, 4, 5, 6), random(3, 1, 6, 7, seed=1)
    for dims in range(4):
        out = torch.ops.mpsk.sum_matmuls(*to_mps((a, b)), dims)
        whole = a.double() @ b.double()
        expected = whole.sum(tuple(range(3 - dims, 3))) if dims else whole
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((2, 5, 7, 2, 7, 9, 2), "expected dims >= 0 and <= 1, those of the batch, got 2"),
        ((2, 5, 7, 2, 7, 9, -1), "expected dims >= 0 and <= 1, those of the batch, got -1"),
        ((2, 5, 7, 2, 6, 9, 1), "expected b.size(-2) == 7 to match a.size(-1), got 6"),
    ],
)
def test_sum_matmuls_rejects(args, text):
    *sizes, dims = args
    tensors = to_mps((random(*sizes[:3]), random(*sizes[3:])))
    assert_rejected("sum_matmuls", (*tensors, dims), {}, ValueError, f"mpsk::sum_matmuls: {text}")


def test_strided_gradients_are_read_where_they_are():
    for shape, permuted in [((4, 6, 8), (2, 0, 1)), ((3, 1, 40), (1, 2, 0)), ((9,), (0,)), ((), ())]:
        tensors = [random(*shape, seed=i) for i in range(3)]
        on_mps = to_mps(tensors)
        views = [t.permute(permuted) for t in on_mps[:2]]
        alike = on_mps[2].permute(permuted).contiguous()
        out, copied = copies(lambda v=views, u=alike: torch.ops.mpsk.gated_linear_backward(*v, u, activation="silu"))
        assert not copied
        grad, gate, up = (t.permute(permuted).double() for t in tensors)
        slope = torch.sigmoid(gate) * (1 + gate * (1 - torch.sigmoid(gate)))
        torch.testing.assert_close(out[0].cpu().double(), grad * up * slope, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out[1].cpu().double(), grad * F.silu(gate), rtol=1e-5, atol=1e-6)
    grad, preactivation = random(30, 70), random(70, 30, seed=1)
    moved = to_mps((grad, preactivation))
    (of_sum, of_bias), copied = copies(
        lambda: torch.ops.mpsk.linear_backward(moved[0].t(), moved[1], activation="relu", bias=True),
    )
    assert not copied
    expected = grad.t() * (preactivation > 0)
    assert torch.equal(of_sum.cpu(), expected)
    torch.testing.assert_close(of_bias.cpu(), expected.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n", "k"), [(33, 40, 24), (96, 64, 48)])
@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True)])
def test_add_matmuls_reads_unlike_strides(m, n, k, first, second):
    def operand(rows, columns, transposed, seed):
        return random(columns, rows, seed=seed).t() if transposed else random(rows, columns, seed=seed)

    args = [operand(m, k, first, 0), random(k, n, seed=1), operand(m, k, second, 2), operand(k, n, True, 3)]
    moved = [t.t().to("mps").t() if t.stride(0) == 1 else t.to("mps") for t in args]
    assert [t.stride() for t in moved] == [t.stride() for t in args]
    out, copied = copies(lambda: torch.ops.mpsk.add_matmuls(*moved))
    assert not copied
    a, b, c, d = (t.double() for t in args)
    torch.testing.assert_close(out.cpu().double(), a @ b + c @ d, rtol=1e-5, atol=1e-4)


def test_backward_launches_only_what_is_needed():
    x, weight, bias = to_mps((random(6, 8), random(10, 8), random(10)))
    for needs, products, reductions in [((1, 0, 0), 1, 0), ((0, 1, 0), 1, 0), ((0, 0, 1), 0, 1), ((1, 1, 1), 2, 1)]:
        tensors = [t.clone().requires_grad_(bool(need)) for t, need in zip((x, weight, bias), needs, strict=True)]
        out = mpskernels.linear(*tensors)
        _C.reset_launches()
        out.sum().backward()
        counts = {op: sum(kernels.values()) for op, kernels in _C.launches().items()}
        assert counts.get("matmul", 0) + counts.get("sum_matmuls", 0) == products
        assert counts.get("linear_backward", 0) == 2 * reductions  # chunks, and their sum


def test_nothing_is_saved_where_no_gradient_is_needed():
    x, weight = to_mps((random(6, 8), random(10, 8)))
    for context in (torch.no_grad, torch.inference_mode):
        _C.reset_launches()
        with context():
            mpskernels.linear(x.clone().requires_grad_(), weight, activation="gelu")
        assert set(_C.launches()) == {"linear"}
    _C.reset_launches()
    mpskernels.linear(x.clone().requires_grad_(), weight, activation="gelu")
    assert set(_C.launches()) == {"linear_saving"}


def test_gradient_of_the_activation_has_none():
    x, weight = to_mps((random(6, 8), random(10, 8)))
    out = mpskernels.linear(x.requires_grad_(), weight, activation="gelu")
    with pytest.raises(NotImplementedError, match="mpsk::linear_backward: no gradient for grad"):
        torch.autograd.grad(out, x, torch.ones_like(out, requires_grad=True), create_graph=True)


@pytest.mark.parametrize("op", ["matmul", "linear", "gated_linear"])
def test_backward_compiles(op):
    torch._dynamo.reset()
    functions = {
        "matmul": lambda x, w, v: mpskernels.matmul(x, w.t()),
        "linear": lambda x, w, v: mpskernels.linear(x, w, v[:, 0], activation="gelu"),
        "gated_linear": lambda x, w, v: mpskernels.gated_linear(x, w, v),
    }
    function = functions[op]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors = to_mps((random(3, 5, 8), random(10, 8, seed=1), random(10, 8, seed=2)))
    leaves = [[t.clone().requires_grad_() for t in tensors] for _ in range(2)]
    function(*leaves[0]).square().sum().backward()
    compiled(*leaves[1]).square().sum().backward()
    for eager, traced in zip(*leaves, strict=True):
        assert (eager.grad is None) == (traced.grad is None)
        if eager.grad is not None:
            assert torch.equal(eager.grad.cpu(), traced.grad.cpu())


# All of opcheck but its test of the registration, which knows no mps.
UTILITIES = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@dtypes
def test_gradients_pass_opcheck(dtype):
    x, weight, bias, other = (
        t.requires_grad_()
        for t in to_mps([random(3, 5, 8, dtype=dtype), *(random(*s, dtype=dtype) for s in [(10, 8), (10,), (10, 8)])])
    )
    for op, args, kwargs in [
        ("matmul", (x, weight.detach().t().requires_grad_()), {}),
        ("linear", (x, weight, bias), {"activation": "silu"}),
        ("linear_saving", (x, weight, bias, "silu", None), {}),
        ("linear_saving", (x, weight, None, "none", None), {}),
        ("gated_linear", (x, weight, other), {}),
        ("gated_linear_saving", (x, weight, other, "gelu"), {}),
    ]:
        torch.library.opcheck(direct(op).default, args, kwargs, test_utils=UTILITIES)


def test_gradients_are_deterministic():
    def run():
        tensors = [t.requires_grad_() for t in to_mps((random(500, 40), random(60, 40), random(60)))]
        mpskernels.linear(*tensors, activation="silu").square().sum().backward()
        return [t.grad.cpu() for t in tensors]

    first = run()
    for again in (run(), run()):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_as_torch_does(dtype):
    x, weight, bias = to_mps((random(5, 8), random(10, 8), random(10)))
    calls = {
        "matmul": (lambda: mpskernels.matmul(x, weight.t()), lambda: torch.matmul(x, weight.t())),
        "linear": (lambda: mpskernels.linear(x, weight, bias), lambda: F.linear(x, weight, bias)),
    }
    for ours, stock in calls.values():
        assert ours().dtype == torch.float32
        with torch.autocast("mps", dtype=dtype):
            out = ours()
            assert out.dtype == stock().dtype == dtype
            with torch.autocast("mps", enabled=False):
                assert ours().dtype == torch.float32
    half = [t.to(dtype) for t in (x, weight, bias)]
    with torch.autocast("mps", dtype=dtype):
        assert torch.equal(mpskernels.linear(x, weight, bias).cpu(), mpskernels.linear(*half).cpu())
        assert torch.equal(
            mpskernels.gated_linear(x, weight, weight).cpu(), mpskernels.gated_linear(*half[:2], half[1]).cpu()
        )
        leaf = weight.clone().requires_grad_()
        mpskernels.linear(x, leaf, bias, activation="silu").float().sum().backward()
    assert leaf.grad.dtype == torch.float32  # the dtype of the parameter


def test_linear_module_trains_as_torch_does():
    torch.manual_seed(0)
    stock = torch.nn.Linear(12, 7)
    ours = nn.Linear(12, 7)
    ours.load_state_dict(stock.state_dict())
    ours = ours.to("mps")
    x = random(4, 3, 12)
    for module, where in ((stock, "cpu"), (ours, "mps")):
        module(x.to(where)).square().sum().backward()
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(getattr(ours, name).grad.cpu(), parameter.grad, rtol=1e-5, atol=1e-5)


# --- errors -----------------------------------------------------------------------------------------------------------


def empty(*shape, dtype=torch.float32, device="mps"):
    return torch.empty(shape, dtype=dtype, device=device)


REJECTED = {
    "weight_size": (
        lambda: ((empty(2, 8), empty(4, 7)), {}),
        ValueError,
        "expected weight.size(1) == 8 to match x.size(-1), got 7",
    ),
    "weight_dim": (lambda: ((empty(2, 8), empty(8)), {}), ValueError, "expected weight.dim() == 2, got 1"),
    "scalar": (lambda: ((empty(), empty(4, 8)), {}), ValueError, "expected x.dim() >= 1, got 0"),
    "bias_size": (
        lambda: ((empty(2, 8), empty(4, 8), empty(5)), {}),
        ValueError,
        "expected bias.size(0) == 4 to match weight.size(0), got 5",
    ),
    "residual_size": (
        lambda: ((empty(2, 8), empty(4, 8)), {"residual": empty(3, 4)}),
        ValueError,
        "expected residual.size(-2) == 2 to match x.size(-2), got 3",
    ),
    "residual_columns": (
        lambda: ((empty(2, 8), empty(4, 8)), {"residual": empty(2, 5)}),
        ValueError,
        "expected residual.size(-1) == 4 to match weight.size(0), got 5",
    ),
    "activation": (
        lambda: ((empty(2, 8), empty(4, 8)), {"activation": "tanh"}),
        ValueError,
        "expected activation none, relu, gelu, gelu_tanh or silu, got tanh",
    ),
    "dtype": (
        lambda: ((empty(2, 8, dtype=torch.int64), empty(4, 8)), {}),
        TypeError,
        "expected x of dtype float32, float16 or bfloat16, got int64",
    ),
    "complex": (
        lambda: ((empty(2, 8, dtype=torch.complex64), empty(4, 8)), {}),
        TypeError,
        "expected x of dtype float32, float16 or bfloat16, got complex64",
    ),
    "bias_dtype": (
        lambda: ((empty(2, 8), empty(4, 8), empty(4, dtype=torch.float16)), {}),
        TypeError,
        "expected bias of dtype float32 to match x, got float16",
    ),
    "weight_on_cpu": (
        lambda: ((empty(2, 8), empty(4, 8, device="cpu")), {}),
        ValueError,
        'expected weight on device mps, got cpu; move it with weight.to("mps")',
    ),
    "none": (lambda: ((empty(2, 8), None), {}), TypeError, "expected weight to be a tensor, got None"),
}


def to_differentiate(tree):
    """Of the tensors of a nest, those that can have a gradient require one: another op runs then, which saves."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.requires_grad_(t.is_floating_point() or t.is_complex()), tree
    )


GATED_REJECTED = {
    "weights": (
        lambda: ((empty(2, 8), empty(4, 8), empty(5, 8)), {}),
        ValueError,
        "expected w_up.size(0) == 4 to match w_gate.size(0), got 5",
    ),
    "weight_size": (
        lambda: ((empty(2, 8), empty(4, 7), empty(4, 8)), {}),
        ValueError,
        "expected w_gate.size(1) == 8 to match x.size(-1), got 7",
    ),
    "weight_dim": (
        lambda: ((empty(2, 8), empty(4, 8), empty(8)), {}),
        ValueError,
        "expected w_up.dim() == 2, got 1",
    ),
    "dtype": (
        lambda: ((empty(2, 8), empty(4, 8, dtype=torch.float16), empty(4, 8)), {}),
        TypeError,
        "expected w_gate of dtype float32 to match x, got float16",
    ),
    "activation": (
        lambda: ((empty(2, 8), empty(4, 8), empty(4, 8)), {"activation": "swish"}),
        ValueError,
        "expected activation none, relu, gelu, gelu_tanh or silu, got swish",
    ),
}


ALL_REJECTED = {"linear": REJECTED, "gated_linear": GATED_REJECTED}


@pytest.mark.parametrize("gradient", [False, True], ids=["", "gradient"])
@pytest.mark.parametrize(("op", "case"), [(op, case) for op, cases in ALL_REJECTED.items() for case in cases])
def test_layers_reject(op, case, gradient):
    make, error, text = ALL_REJECTED[op][case]
    args, kwargs = to_differentiate(make()) if gradient else make()
    assert_rejected(op, args, kwargs, error, f"mpsk::{op}: {text}")
