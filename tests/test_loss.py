import math

import pytest
import torch
import torch.nn.functional as F
from cases import assert_accurate, assert_rejected, direct, dtypes, in_threads, random, to_mps
from torch.testing._internal.common_methods_invocations import op_db

import mpskernels
from mpskernels import _C

OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z": {"z_loss": 0.01},
    "capped": {"soft_cap": 2.0},
    "all": {"label_smoothing": 0.3, "z_loss": 0.1, "soft_cap": 5.0, "ignore_index": 1},
    "all_smooth": {"label_smoothing": 1.0},
}
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def reference(logits, targets, *, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, soft_cap=None, reduction="mean"):
    """In float64, of classes last."""
    x = logits.double()
    if soft_cap is not None:
        x = soft_cap * torch.tanh(x / soft_cap)
    lse = x.logsumexp(-1)
    there = targets != ignore_index
    at = x.gather(-1, targets.where(there, 0)[..., None].long())[..., 0]
    loss = (1 - label_smoothing) * (lse - at) + label_smoothing * (lse - x.mean(-1)) + z_loss * lse**2
    loss = loss.where(there, 0.0)
    return loss if reduction == "none" else loss.sum() / (there.sum() if reduction == "mean" else 1)


def make(dtype, *shape, seed=0):
    """Logits and targets, some of which are ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    targets[torch.rand(shape[:-1], generator=generator) < 0.2] = -100
    return 2 * random(*shape, dtype=dtype, seed=seed), targets


def check(logits, targets, **options):
    """The loss, its gradient in backward and from the forward pass."""
    if options.get("ignore_index", -100) != -100:
        targets = targets.where(targets != -100, options["ignore_index"])
    wide = logits.double().requires_grad_()
    expected = reference(wide, targets, **options)
    leaf = to_mps(logits).requires_grad_()
    ours = mpskernels.cross_entropy(leaf, to_mps(targets), **options)
    assert ours.dtype == torch.float32
    assert ours.shape == expected.shape
    size = 1 + logits.double().abs().max() if logits.numel() else 1
    rows = (targets != options.get("ignore_index", -100)).sum() if options.get("reduction") == "sum" else 1
    scale = expected.detach().abs() + size * rows
    assert_accurate(ours.detach(), expected.detach(), scale=scale, allowed=4.0)
    grad = random(*expected.shape, seed=3) if expected.dim() else torch.tensor(0.7)
    limit = 8.0 if logits.dtype == torch.float32 else 0.6
    counted = (targets != options.get("ignore_index", -100)).sum() if options.get("reduction", "mean") == "mean" else 1
    for upstream in (grad, torch.ones_like(grad)):
        (exact,) = torch.autograd.grad(expected, wide, upstream.double(), retain_graph=True)
        if upstream is grad:
            (of_logits,) = torch.autograd.grad(ours, leaf, to_mps(upstream))
        else:
            again, of_logits = mpskernels.cross_entropy_and_gradient(leaf, to_mps(targets), **options)
            assert torch.equal(again.cpu(), ours.detach().cpu())
        assert of_logits.dtype == logits.dtype
        assert of_logits.is_contiguous()
        # An exponential less one has an error as that of one; in half it is rounded to few digits, fewer where tiny.
        one = (upstream.double().abs() / counted)[..., None].expand_as(exact)
        if logits.dtype != torch.float32:
            one = exact.abs() + one * 1e-3 + torch.finfo(logits.dtype).tiny
        assert_accurate(of_logits, exact, scale=one, allowed=limit)


@dtypes
@reductions
@options
def test_cross_entropy_matches_reference(dtype, reduction, options):
    check(*make(dtype, 7, 40), reduction=reduction, **options)


@dtypes
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 100, 1024, 4096, 4097, 8200, 33000, 66000])
def test_cross_entropy_of_many_classes(dtype, classes):
    check(*make(dtype, 3, classes), label_smoothing=0.1)
    check(*make(dtype, 3, classes), reduction="none", soft_cap=5.0)


@dtypes
@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (2, 1, 3, 8)], ids=str)
@reductions
def test_cross_entropy_takes_any_leading_shape(dtype, shape, reduction):
    logits, targets = make(dtype, *shape)
    check(logits, targets.where(targets >= 0, 1), reduction=reduction)
    check(logits, targets.where(targets >= 0, 1).int(), reduction=reduction)


LAYOUTS = {
    "classes_first": lambda t: t(24, 6).T,
    "classes_second": lambda t: t(2, 24, 5).movedim(1, -1),
    "every_second_class": lambda t: t(6, 48)[:, ::2],
    "shifted": lambda t: t(2, 7, 24)[:, :-1],
    "unaligned": lambda t: t(6, 25)[:, 1:],
    "expanded": lambda t: t(1, 24).expand(6, 24),
}


@dtypes
@reductions
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_reads_any_strides(dtype, layout, reduction):
    logits = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
    targets = torch.randint(0, 24, (*logits.shape[:-2], 2 * logits.size(-2)))[..., ::2]
    check(logits, targets, reduction=reduction)


def test_cross_entropy_takes_expanded_gradients():
    logits, targets = make(torch.float32, 5, 8)
    leaf = to_mps(logits).requires_grad_()
    (ours,) = torch.autograd.grad(mpskernels.cross_entropy(leaf, to_mps(targets), reduction="none").sum(), leaf)
    _, expected = mpskernels.cross_entropy_and_gradient(leaf, to_mps(targets), reduction="sum")
    assert torch.equal(ours.cpu(), expected.cpu())


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_losses_of_no_rows(shape):
    logits = torch.empty(shape, device="mps", requires_grad=True)
    targets = torch.empty(shape[:-1], dtype=torch.int64, device="mps")
    weight = torch.ones(5, 8, device="mps", requires_grad=True)
    for loss in (
        lambda reduction: mpskernels.cross_entropy(logits, targets, reduction=reduction),
        lambda reduction: mpskernels.linear_cross_entropy(logits, weight, targets, reduction=reduction),
    ):
        assert loss("none").shape == shape[:-1]
        assert loss("sum").item() == 0
        assert math.isnan(loss("mean").item())
        loss("sum").backward()
    assert torch.equal(weight.grad.cpu(), torch.zeros(5, 8))


def test_all_rows_ignored():
    logits = to_mps(random(3, 8)).requires_grad_()
    targets = to_mps(torch.full((3,), -100))
    assert math.isnan(mpskernels.cross_entropy(logits, targets).item())
    loss = mpskernels.cross_entropy(logits, targets, reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad.cpu(), torch.zeros(3, 8))


@dtypes
@pytest.mark.parametrize("bad", [8, -1, 2**40, -(2**40)])
def test_targets_that_are_no_class_give_nan(dtype, bad):
    logits, targets = random(3, 8, dtype=dtype), torch.tensor([1, bad, 2])
    loss, gradient = mpskernels.cross_entropy_and_gradient(*to_mps([logits, targets]), reduction="none")
    good, wanted = mpskernels.cross_entropy_and_gradient(*to_mps([logits, targets.clamp(0, 7)]), reduction="none")
    assert loss.cpu().isnan().tolist() == [False, True, False]
    assert gradient[1].cpu().isnan().all()
    for row in (0, 2):
        assert loss[row].item() == good[row].item()
        assert torch.equal(gradient[row].cpu(), wanted[row].cpu())
    weight = to_mps(random(8, 8, dtype=dtype))
    assert math.isnan(mpskernels.linear_cross_entropy(to_mps(logits), weight, to_mps(targets)).item())


@dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_cross_entropy_passes_on_what_is_not_finite(dtype, bad):
    logits = random(3, 8, dtype=dtype)
    logits[1, 2] = bad
    targets = torch.tensor([0, 1, 2])
    loss, gradient = mpskernels.cross_entropy_and_gradient(*to_mps([logits, targets]), reduction="none")
    assert loss.cpu().isfinite().tolist() == [True, False, True]
    assert gradient[1].cpu().isnan().any()
    assert gradient[[0, 2]].cpu().isfinite().all()


@dtypes
def test_classes_of_minus_infinity_take_no_part(dtype):
    logits = random(3, 8, dtype=dtype)
    logits[:, 5:] = -math.inf
    targets = torch.tensor([0, 1, 4])
    loss, gradient = mpskernels.cross_entropy_and_gradient(*to_mps([logits, targets]))
    few, wanted = mpskernels.cross_entropy_and_gradient(*to_mps([logits[:, :5].contiguous(), targets]))
    torch.testing.assert_close(loss.cpu(), few.cpu())
    torch.testing.assert_close(gradient[:, :5].cpu(), wanted.cpu())
    assert torch.equal(gradient[:, 5:].cpu(), torch.zeros(3, 3, dtype=dtype))
    assert mpskernels.cross_entropy(*to_mps([logits, torch.tensor([0, 1, 6])])).item() == math.inf


def test_cross_entropy_of_large_logits():
    logits = torch.tensor([[1e37, 0.0, -1e37], [-1e37, -1e37, -1e37]])
    loss = mpskernels.cross_entropy(*to_mps([logits, torch.tensor([0, 2])]), reduction="none")
    torch.testing.assert_close(loss.cpu(), torch.tensor([0.0, math.log(3)]))


def test_cross_entropy_passes_torchs_own_samples():
    """All whose targets are classes without weights: ours has no weights."""
    [info] = [info for info in op_db if info.name == "nn.functional.cross_entropy"]
    taken = 0
    for sample in info.sample_inputs("cpu", torch.float32, requires_grad=True):
        targets, kwargs = sample.args[0], dict(sample.kwargs)
        if targets.is_floating_point() or kwargs.pop("weight", None) is not None:
            continue
        leaf = to_mps(sample.input.detach()).requires_grad_()
        logits = leaf.movedim(1, -1) if leaf.dim() > 1 else leaf
        ours = mpskernels.cross_entropy(logits, to_mps(targets), **kwargs)
        stock = F.cross_entropy(sample.input, targets, **kwargs)
        torch.testing.assert_close(ours.cpu(), stock, atol=1e-5, rtol=1e-5)
        (of_ours,) = torch.autograd.grad(ours, leaf, torch.ones_like(ours))
        (of_stock,) = torch.autograd.grad(stock, sample.input, torch.ones_like(stock))
        torch.testing.assert_close(of_ours.cpu(), of_stock, atol=1e-5, rtol=1e-5)
        taken += 1
    assert taken >= 8


def test_cross_entropy_definition_passes_gradcheck():
    _, targets = make(torch.float32, 5, 7)
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "soft_cap": 1.5}
    leaves = [random(*shape).double().requires_grad_() for shape in ((5, 3), (7, 3))]
    assert torch.autograd.gradcheck(lambda h, w: reference(h @ w.T, targets, **options), leaves)


def test_cross_entropy_is_deterministic_and_its_launches_are_counted():
    logits, targets = to_mps(make(torch.float32, 70, 300))
    for reduction, launches in {"none": 1, "sum": 2, "mean": 3}.items():
        _C.reset_launches()
        loss, gradient = mpskernels.cross_entropy_and_gradient(logits, targets, reduction=reduction)
        assert sum(_C.launches()["cross_entropy"].values()) == launches
        again = mpskernels.cross_entropy_and_gradient(logits, targets, reduction=reduction)
        assert torch.equal(loss.cpu(), again[0].cpu())
        assert torch.equal(gradient.cpu(), again[1].cpu())


def linear_case(dtype, rows=7, columns=16, classes=40):
    _, targets = make(dtype, rows, classes)
    return random(rows, columns, dtype=dtype), random(classes, columns, dtype=dtype, seed=1) / 4, targets


def check_linear(hidden, weight, targets, **options):
    chunk = {"chunk": options.pop("chunk")} if "chunk" in options else {}
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    expected = reference(wide[0] @ wide[1].T, targets, **options)
    leaves = [to_mps(t).requires_grad_() for t in (hidden, weight)]
    ours = mpskernels.linear_cross_entropy(*leaves, to_mps(targets), **options, **chunk)
    assert ours.dtype == torch.float32
    eps = torch.finfo(hidden.dtype).eps
    # Logits are rounded to the dtype, which is an error of the loss as large as theirs.
    limit = 8 * eps * (1 + (wide[0] @ wide[1].T).abs().max().item())
    many = max(1, targets.numel()) if options.get("reduction") == "sum" else 1
    torch.testing.assert_close(ours.detach().cpu().double(), expected.detach(), atol=limit * many, rtol=limit)
    grad = random(*expected.shape, seed=3) if expected.dim() else torch.tensor(0.7)
    exact = torch.autograd.grad(expected, wide, grad.double())
    for got, want, leaf in zip(torch.autograd.grad(ours, leaves, to_mps(grad)), exact, leaves, strict=True):
        assert got.dtype == leaf.dtype
        assert got.shape == leaf.shape
        largest = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(got.cpu().double(), want, atol=4 * limit * largest + 1e-7, rtol=0)


@dtypes
@reductions
@options
def test_linear_cross_entropy_matches_reference(dtype, reduction, options):
    options = {name: value for name, value in options.items() if name != "ignore_index"}
    check_linear(*linear_case(dtype), reduction=reduction, chunk=3, **options)


@pytest.mark.parametrize("chunk", [1, 2, 6, 7, 8, 1000, None])
@pytest.mark.parametrize(("rows", "columns", "classes"), [(7, 16, 40), (1, 5, 3), (3, 1, 1), (65, 8, 130)])
def test_linear_cross_entropy_takes_any_chunk(chunk, rows, columns, classes):
    check_linear(*linear_case(torch.float32, rows, columns, classes), chunk=chunk)


@dtypes
def test_linear_cross_entropy_reads_any_strides(dtype):
    hidden, weight, targets = linear_case(dtype, 6)
    check_linear(hidden.T.contiguous().T, weight.T.contiguous().T, targets, chunk=4)
    check_linear(hidden.view(2, 3, 16), weight[::2], targets.view(2, 3).clamp(max=19), chunk=4, reduction="none")
    of_positions = torch.stack((targets, targets.flip(0)), 1)[:, 0].view(2, 3)  # as targets[:, 1:] would leave them
    assert not of_positions.is_contiguous()
    check_linear(hidden.view(2, 3, 16), weight, of_positions, chunk=4, reduction="none")
    with pytest.raises(NotImplementedError, match=r"expected hidden with leading dimensions .*hidden.contiguous"):
        mpskernels.linear_cross_entropy(*to_mps([hidden.view(2, 3, 16).transpose(0, 1), weight, targets.view(3, 2)]))


def test_linear_cross_entropy_takes_gradients_and_targets_in_any_order():
    hidden, weight, _ = linear_case(torch.float32, 6)
    targets, of_loss = torch.tensor([[3, 0, 7, 1], [2, 2, 5, 4]])[:, 1:], random(3, 2, seed=3)

    def gradients(loss, *tensors):
        hidden, weight = (t.detach().requires_grad_() for t in tensors[:2])
        out = loss(hidden.view(2, 3, 16), weight, tensors[2])
        return torch.autograd.grad((out.t() * tensors[3]).sum(), (hidden, weight))

    def stock(hidden, weight, targets):
        return F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none").view(2, 3)

    def ours(hidden, weight, targets):
        return mpskernels.linear_cross_entropy(hidden, weight, targets, reduction="none")

    on_mps = to_mps([hidden, weight, torch.tensor([[3, 0, 7, 1], [2, 2, 5, 4]]), of_loss])
    got = gradients(ours, *on_mps[:2], on_mps[2][:, 1:], on_mps[3])
    want = gradients(stock, hidden.double(), weight.double(), targets, of_loss.double())
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_linear_cross_entropy_computes_one_gradient_alone(which):
    tensors = list(to_mps(linear_case(torch.float32)))
    leaf = tensors[which] = tensors[which].requires_grad_()
    loss = mpskernels.linear_cross_entropy(*tensors, chunk=3)
    _C.reset_launches()
    loss.backward()
    # Two products for each of 3 chunks, of 3 rows of 7 or of 17 classes of 40.
    assert sum(_C.launches()["matmul"].values()) == 2 * 3
    assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("chunk", [2, 5, 16])
def test_linear_cross_entropy_holds_no_more_than_its_chunk(chunk):
    rows, columns, classes = 64, 8, 96
    tensors = [
        t.requires_grad_(t.is_floating_point()) for t in to_mps(linear_case(torch.float32, rows, columns, classes))
    ]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        mpskernels.linear_cross_entropy(*tensors, chunk=chunk).backward()
    sizes = [math.prod(event.concrete_inputs[0]) for event in profile.events() if event.name == "aten::empty"]
    results = {rows * columns, classes * columns}  # the gradients
    assert results <= set(sizes)
    assert chunk * classes in sizes
    assert max(size for size in sizes if size not in results) <= chunk * classes
    stock = {event.name for event in profile.events() if event.name.startswith("aten::")}
    assert not stock & {
        "aten::mm",
        "aten::addmm",
        "aten::matmul",
        "aten::bmm",
        "aten::log_softmax",
        "aten::_log_softmax",
    }


def test_losses_from_several_threads():
    def work(seed):
        check(*make(torch.float32, 5, 40 + seed, seed=seed))
        check_linear(*linear_case(torch.float32, 5 + seed), chunk=2)

    in_threads(work)


def test_losses_reach_every_kernel():
    _C.reset_launches()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        hidden, weight, targets = to_mps(linear_case(dtype))
        for t in (targets, targets.int()):
            mpskernels.linear_cross_entropy(hidden.requires_grad_(), weight, t, chunk=3).backward()
    ran = {label.split("?")[0] for kernels in _C.launches().values() for label in kernels}
    names = {name for name in _C.function_names() if name.startswith(("cross_entropy", "loss"))}
    assert names <= ran
    assert len(names) == 9


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


def classes(*shape, device="mps"):
    return torch.zeros(shape, dtype=torch.int64, device=device)


REJECTED = {
    "logits_none": (lambda: (None, classes(3)), {}, TypeError, "expected logits to be a tensor, got None"),
    "logits_on_cpu": (
        lambda: (empty(3, 4, device="cpu"), classes(3)),
        {},
        ValueError,
        'expected logits on device mps, got cpu; move it with logits.to("mps")',
    ),
    "logits_dtype": (
        lambda: (classes(3, 4), classes(3)),
        {},
        TypeError,
        "expected logits of dtype float32, float16 or bfloat16, got int64",
    ),
    "logits_scalar": (lambda: (empty(), classes()), {}, ValueError, "expected logits.dim() >= 1, got 0"),
    "no_classes": (
        lambda: (empty(3, 0), classes(3)),
        {},
        ValueError,
        "expected at least one class, got logits.size(-1) == 0",
    ),
    "targets_none": (lambda: (empty(3, 4), None), {}, TypeError, "expected targets to be a tensor, got None"),
    "targets_on_cpu": (
        lambda: (empty(3, 4), classes(3, device="cpu")),
        {},
        ValueError,
        'expected targets on device mps, got cpu; move it with targets.to("mps")',
    ),
    "targets_dtype": (
        lambda: (empty(3, 4), empty(3)),
        {},
        TypeError,
        "expected targets of dtype int32 or int64, got float32",
    ),
    "probabilities": (
        lambda: (empty(3, 4), empty(3, 4)),
        {},
        TypeError,
        "expected targets of dtype int32 or int64, got float32",
    ),
    "targets_dimensions": (lambda: (empty(3, 4), classes(3, 4)), {}, ValueError, "expected targets.dim() == 1, got 2"),
    "targets_size": (
        lambda: (empty(3, 4), classes(2)),
        {},
        ValueError,
        "expected targets.size(0) == 3 to match logits, got 2",
    ),
    **{
        f"smoothing_{value}": (
            lambda: (empty(3, 4), classes(3)),
            {"label_smoothing": value},
            ValueError,
            f"expected label_smoothing between 0 and 1, got {value:g}",
        )
        for value in (-0.1, 1.5, math.nan)
    },
    **{
        f"z_loss_{value}": (
            lambda: (empty(3, 4), classes(3)),
            {"z_loss": value},
            ValueError,
            f"expected a z_loss >= 0 that is finite in float32, got {value:g}",
        )
        for value in (-1.0, math.inf, math.nan)
    },
    "soft_cap": (
        lambda: (empty(3, 4), classes(3)),
        {"soft_cap": 0.0},
        ValueError,
        "expected a soft_cap > 0 that is finite in float32, got 0",
    ),
    "reduction": (
        lambda: (empty(3, 4), classes(3)),
        {"reduction": "batchmean"},
        ValueError,
        'expected reduction to be "mean", "sum" or "none", got "batchmean"',
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_cross_entropy_rejects(case):
    args, kwargs, error, text = REJECTED[case]
    assert_rejected("cross_entropy", args(), kwargs, error, f"mpsk::cross_entropy: {text}")


LINEAR_REJECTED = {
    "weight_on_cpu": (
        lambda: (empty(3, 4), empty(5, 4, device="cpu"), classes(3)),
        {},
        ValueError,
        'expected weight on device mps, got cpu; move it with weight.to("mps")',
    ),
    "weight_dtype": (
        lambda: (empty(3, 4), empty(5, 4, dtype=torch.float16), classes(3)),
        {},
        TypeError,
        "expected weight of dtype float32 to match hidden, got float16",
    ),
    "weight_dimensions": (
        lambda: (empty(3, 4), empty(4), classes(3)),
        {},
        ValueError,
        "expected weight.dim() == 2, got 1",
    ),
    "weight_columns": (
        lambda: (empty(3, 4), empty(5, 6), classes(3)),
        {},
        ValueError,
        "expected weight.size(1) == 4 to match hidden.size(-1), got 6",
    ),
    "no_classes": (
        lambda: (empty(3, 4), empty(0, 4), classes(3)),
        {},
        ValueError,
        "expected at least one class, got weight.size(0) == 0",
    ),
    "targets": (
        lambda: (empty(3, 4), empty(5, 4), classes(2)),
        {},
        ValueError,
        "expected targets.size(0) == 3 to match hidden, got 2",
    ),
    "chunk": (
        lambda: (empty(3, 4), empty(5, 4), classes(3)),
        {"chunk": 0},
        ValueError,
        "expected chunk > 0, got 0",
    ),
    "reduction": (
        lambda: (empty(3, 4), empty(5, 4), classes(3)),
        {"reduction": ""},
        ValueError,
        'expected reduction to be "mean", "sum" or "none", got ""',
    ),
}


@pytest.mark.parametrize("case", LINEAR_REJECTED)
def test_linear_cross_entropy_rejects(case):
    args, kwargs, error, text = LINEAR_REJECTED[case]
    assert_rejected("linear_cross_entropy", args(), kwargs, error, f"mpsk::linear_cross_entropy: {text}")


BACKWARD_REJECTED = {
    "grad_dtype": (
        lambda: (empty(dtype=torch.float16), empty(3, 4), classes(3), empty(3), empty(1)),
        TypeError,
        "expected grad of dtype float32, got float16",
    ),
    "grad_shape": (
        lambda: (empty(3), empty(3, 4), classes(3), empty(3), empty(1)),
        ValueError,
        "expected grad.dim() == 0, got 1",
    ),
    "lse_shape": (
        lambda: (empty(), empty(3, 4), classes(3), empty(4), empty(1)),
        ValueError,
        "expected lse.size(0) == 3 to match targets, got 4",
    ),
    "scale_shape": (
        lambda: (empty(), empty(3, 4), classes(3), empty(3), empty(2)),
        ValueError,
        "expected scale.size(0) == 1 for this reduction, got 2",
    ),
}


@pytest.mark.parametrize("case", BACKWARD_REJECTED)
def test_cross_entropy_backward_rejects(case):
    args, error, text = BACKWARD_REJECTED[case]
    assert_rejected("cross_entropy_backward", args(), {}, error, f"mpsk::cross_entropy_backward: {text}")


def test_gradients_that_are_refused():
    logits, targets = to_mps(make(torch.float32, 3, 8))
    logits.requires_grad_()
    with pytest.raises(NotImplementedError, match="mpsk::cross_entropy_backward: no gradient for"):
        torch.autograd.grad(mpskernels.cross_entropy(logits, targets), logits, create_graph=True)
    _, lse, scale, _ = direct("cross_entropy")(logits, targets)
    assert not lse.requires_grad
    assert not scale.requires_grad
