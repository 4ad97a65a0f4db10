import itertools
import math

import pytest
import torch
from cases import DTYPE_IDS, assert_accurate, assert_rejected, direct, dtypes, in_threads, random, to_mps

import mpskernels
from mpskernels import _C


def angles(positions, dims, base=10000.0, sections=(), interleaved_sections=False):
    """(batch or 1, length, dims / 2) in float64, of integer positions (length,), (batch, length) or with sections."""
    pairs = dims // 2
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    if sections:
        section = torch.repeat_interleave(torch.arange(len(sections)), torch.tensor(sections))
        if interleaved_sections:
            section = torch.zeros(pairs, dtype=torch.int64)
            for number, count in enumerate(sections[1:], 1):
                section[number : count * len(sections) : len(sections)] = number
            assert section.bincount(minlength=len(sections)).tolist() == list(sections)
        return positions.double()[section].permute(1, 2, 0) * frequencies
    positions = positions if positions.dim() == 2 else positions[None]
    return positions.double()[..., None] * frequencies


def reference(x, cos, sin, interleaved=False):
    """x (batch, heads, length, d), cos and sin (batch or 1, length, pairs)."""
    cos, sin, x = cos.double()[:, None], sin.double()[:, None], x.double()
    dims = 2 * cos.size(-1)
    turned, rest = x[..., :dims], x[..., dims:]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1)


def size_of(x, dims, interleaved):
    """The length of each pair, which rounding is measured by, at both of its columns; of the others, their own size."""
    turned, rest = x.double()[..., :dims], x.double()[..., dims:]
    if interleaved:
        length = turned.unflatten(-1, (-1, 2)).norm(dim=-1)
        length = length.repeat_interleave(2, -1)
    else:
        length = turned.unflatten(-1, (2, -1)).norm(dim=-2).repeat(1, 1, 1, 2)
    return torch.cat([length, rest], -1)


def check(
    q,
    k=None,
    *,
    cos=None,
    sin=None,
    positions=None,
    offset=0,
    base=10000.0,
    dims=None,
    interleaved=False,
    sections=(),
    interleaved_sections=False,
    allowed=None,
):
    """Of tensors on the CPU: q and k turned, and turned back by the gradient."""
    count = q.size(-1) if dims is None else dims
    at = torch.arange(q.size(2)) if positions is None else positions
    if cos is None:
        theta = angles(at + offset, count, base, sections, interleaved_sections)
        exact = theta.cos(), theta.sin()
    else:
        rows = at.long() + offset
        pick = (lambda t: t[:, rows]) if cos.dim() == 3 else (lambda t: t[rows] if rows.dim() == 2 else t[rows][None])
        exact = tuple(pick(t)[..., : count // 2] for t in (cos, sin))
    options = {
        "offset": offset,
        "base": base,
        "dims": dims,
        "interleaved": interleaved,
        "sections": sections,
        "interleaved_sections": interleaved_sections,
    }
    tensors = [t for t in (q, k) if t is not None]
    leaves = [to_mps(t).requires_grad_() for t in tensors]
    outs = mpskernels.rope(*leaves, *[None] * (k is None), *to_mps([cos, sin, positions]), **options)
    outs = [outs] if k is None else outs
    grads = [random(*t.shape, dtype=t.dtype, seed=9) for t in tensors]
    ours = torch.autograd.grad(outs, leaves, to_mps(grads))
    for x, out, grad, of_x in zip(tensors, outs, grads, ours, strict=True):
        assert out.is_contiguous()
        assert of_x.is_contiguous()
        assert out.dtype == of_x.dtype == x.dtype
        limit = (4.0 if x.dtype == torch.float32 else 0.75) if allowed is None else allowed
        assert_accurate(
            out.detach(), reference(x, *exact, interleaved), scale=size_of(x, count, interleaved), allowed=limit
        )
        back = reference(grad, exact[0], -exact[1], interleaved)
        assert_accurate(of_x, back, scale=size_of(grad, count, interleaved), allowed=limit)


def heads(dtype, batch=2, q_heads=4, k_heads=2, length=5, d=32):
    return random(batch, q_heads, length, d, dtype=dtype), random(batch, k_heads, length, d, dtype=dtype, seed=1)


layouts = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])


@dtypes
@layouts
@pytest.mark.parametrize("d", [2, 6, 8, 16, 20, 64, 80, 128, 256])
def test_rope_matches_reference(dtype, interleaved, d):
    q, k = heads(dtype, d=d)
    check(q, k, interleaved=interleaved)
    check(q, interleaved=interleaved, offset=1000)


@dtypes
@layouts
@pytest.mark.parametrize(("d", "dims"), [(64, 32), (64, 0), (40, 8), (33, 32), (80, 20), (7, 2), (5, 0)])
def test_rope_turns_the_first_columns(dtype, interleaved, d, dims):
    q, k = heads(dtype, d=d)
    check(q, k, dims=dims, interleaved=interleaved)
    y = mpskernels.rope(to_mps(q), dims=dims, interleaved=interleaved).cpu()
    assert torch.equal(y[..., dims:], q[..., dims:])


@dtypes
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_rope_takes_positions(dtype, integer):
    q, k = heads(dtype)
    for shape in ((5,), (1, 5), (2, 5)):
        positions = torch.randint(-50, 5000, shape, generator=torch.Generator().manual_seed(0)).to(integer)
        check(q, k, positions=positions)
        check(q, k, positions=positions, offset=77, interleaved=True)
    check(q, k, positions=torch.arange(20, dtype=integer)[::4])
    check(q, k, positions=torch.tensor([[3], [5]], dtype=integer).expand(2, 5))


@dtypes
@layouts
@pytest.mark.parametrize("sections", [(4, 6, 6), (16,), (0, 16), (1, 2, 3, 10)])
def test_rope_takes_sections(dtype, interleaved, sections):
    q, k = heads(dtype)
    for batches in (1, 2):
        positions = torch.randint(0, 5000, (len(sections), batches, 5), generator=torch.Generator().manual_seed(0))
        check(q, k, positions=positions, sections=sections, interleaved=interleaved)
        check(q, k, positions=positions.int(), sections=sections, offset=3)


@dtypes
@layouts
@pytest.mark.parametrize("sections", [(6, 5, 5), (8, 8), (16,), (14, 1, 1), (16, 0, 0), (5, 4, 4, 3)])
def test_rope_interleaves_sections(dtype, interleaved, sections):
    q, k = heads(dtype)
    positions = torch.randint(0, 5000, (len(sections), 2, 5), generator=torch.Generator().manual_seed(0))
    check(q, k, positions=positions, sections=sections, interleaved_sections=True, interleaved=interleaved, offset=3)


def test_rope_interleaves_sections_as_transformers():
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb as theirs

    sections = [24, 20, 20]
    parameters = {"rope_theta": 5e6, "rope_type": "default", "mrope_section": sections}
    embedding = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(head_dim=128, rope_parameters=parameters))
    q, k = heads(torch.float32, d=128)
    positions = torch.randint(0, 200, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    ours = mpskernels.rope(
        *to_mps([q, k]), positions=to_mps(positions), base=5e6, sections=sections, interleaved_sections=True
    )
    for a, b in zip(ours, theirs(q, k, *embedding(q, positions)), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=2e-4, rtol=2e-4)  # theirs rounds angles to float32


@dtypes
@pytest.mark.parametrize("table", ["same", "f32"])
@pytest.mark.parametrize("pairs", [16, 6])
def test_rope_reads_a_table(dtype, table, pairs):
    q, k = heads(dtype, d=2 * pairs)
    theta = angles(torch.arange(40), 2 * pairs)[0]
    entries = torch.float32 if table == "f32" else dtype
    cos, sin = (t.to(entries) for t in (theta.cos(), theta.sin()))
    check(q, k, cos=cos, sin=sin)
    check(q, k, cos=cos, sin=sin, offset=30, interleaved=True)
    check(q, k, cos=cos.repeat(1, 2), sin=sin.repeat(1, 2), offset=35)
    check(q, k, cos=cos[None], sin=sin[None], offset=35)
    check(q, k, cos=torch.stack([cos, cos / 2]), sin=torch.stack([sin, sin / 2]))
    check(q, k, cos=cos.T.contiguous().T, sin=sin)
    positions = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    check(q, k, cos=cos, sin=sin, positions=positions)
    check(q, k, cos=cos, sin=sin, positions=positions.int()[:1] // 2, offset=20)


def test_rope_gives_nan_for_positions_without_a_row():
    q, _ = heads(torch.float32, batch=1, d=8)
    cos, sin = torch.ones(4, 4), torch.zeros(4, 4)
    positions = torch.tensor([0, 3, 4, -1, 2**40])
    y = mpskernels.rope(*to_mps([q, None, cos, sin, positions])).cpu()
    assert torch.equal(y[:, :, :2], q[:, :, :2])
    assert y[:, :, 2:].isnan().all()


LAYOUTS = {
    "heads_third": lambda t: t(2, 5, 4, 32).transpose(1, 2),
    "packed_qkv": lambda t: t(2, 5, 3, 4, 32)[:, :, 1].transpose(1, 2),
    "columns_apart": lambda t: t(2, 4, 5, 64)[..., ::2],
    "unaligned": lambda t: t(2, 4, 5, 33)[..., 1:],
    "length_innermost": lambda t: t(2, 4, 32, 5).transpose(2, 3),
    "expanded_batch": lambda t: t(1, 4, 5, 32).expand(2, 4, 5, 32),
    "expanded_heads": lambda t: t(2, 1, 5, 32).expand(2, 4, 5, 32),
}


@dtypes
@layouts
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_reads_any_strides(dtype, interleaved, layout):
    q = LAYOUTS[layout](lambda *shape: random(*shape, dtype=dtype))
    k = random(2, 1, 5, 32, dtype=dtype, seed=1)
    check(q, k, interleaved=interleaved)
    check(k.expand(2, 4, 5, 32), q, interleaved=interleaved, dims=16)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 1, 1, 8), (1, 7, 1, 64), (1, 1, 700, 4), (2, 9, 33, 16)])
def test_rope_takes_any_sizes(shape):
    check(random(*shape), random(*shape, seed=1))


@pytest.mark.parametrize(
    ("q_shape", "k_shape"),
    [((0, 2, 3, 8), (0, 1, 3, 8)), ((2, 0, 3, 8), (2, 0, 3, 8)), ((2, 2, 0, 8), (2, 2, 0, 8)), ((2, 2, 3, 0),) * 2],
    ids=str,
)
def test_rope_of_nothing_launches_nothing(q_shape, k_shape):
    before = _C.launches()
    q, k = mpskernels.rope(torch.empty(q_shape, device="mps"), torch.empty(k_shape, device="mps"))
    assert (q.shape, k.shape) == (q_shape, k_shape)
    assert _C.launches() == before


def test_rope_of_nothing_but_keys():
    q, k = mpskernels.rope(torch.empty(2, 0, 3, 8, device="mps"), to_mps(random(2, 2, 3, 8)))
    assert q.numel() == 0
    expected = mpskernels.rope(to_mps(random(2, 2, 3, 8)))
    assert torch.equal(k.cpu(), expected.cpu())


@pytest.mark.parametrize("many", [2**17 // 4 - 1, 2**17 // 4, 2**20 // 4])
def test_rope_shares_rotations_among_heads(many):
    # 4 chunks for each head and position: on both sides of each row of the table of choices.
    q, k = random(1, 15, many // 64, 32), random(1, 49, many // 64, 32, seed=1)
    theta = angles(torch.arange(many // 64), 32)
    for x, y in zip((q, k), mpskernels.rope(to_mps(q), to_mps(k)), strict=True):
        assert_accurate(y, reference(x, theta.cos(), theta.sin()), scale=size_of(x, 32, False))


@pytest.mark.parametrize("position", [0, 1, 1000, 131072, 10**6, 2**24 + 1, -(2**24) - 1, 2**28 - 1])
@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
def test_rope_computes_accurate_angles(position, base):
    # (1, 0) turned is (cos, sin). The reference reduces the angle in fixed point of 200 bits: float64 would not do.
    pairs = 64
    one = torch.zeros(1, 1, 1, 2 * pairs)
    one[..., :pairs] = 1
    y = mpskernels.rope(to_mps(one), offset=position, base=base).cpu().double().flatten()
    expected = []
    for pair in range(pairs):
        frequency = base ** (-pair / pairs)
        numerator, denominator = frequency.as_integer_ratio()
        two_pi = 0x6487ED5110B4611A62633145C06E0E68948127044533E63A0105DF531D89CD91  # 2 pi * 2^252
        angle = (position * numerator << 252) // denominator % two_pi
        expected.append(angle / 2**252)
    theta = torch.tensor(expected, dtype=torch.float64)
    error = (y - torch.cat([theta.cos(), theta.sin()])).abs().max().item()
    print(f"error {error:.1e}")
    assert error < 2e-7


def test_rope_of_its_gradient_is_itself():
    q = to_mps(random(1, 2, 3, 8)).requires_grad_()
    grad = to_mps(random(1, 2, 3, 8, seed=1)).requires_grad_()
    (of_q,) = torch.autograd.grad(mpskernels.rope(q), q, grad, create_graph=True)
    (again,) = torch.autograd.grad(of_q, grad, q.detach())
    assert torch.equal(again.cpu(), mpskernels.rope(q.detach()).cpu())
    back = mpskernels.rope(mpskernels.rope(q.detach()), inverse=True)
    torch.testing.assert_close(back.cpu(), q.detach().cpu(), atol=1e-6, rtol=1e-6)


@layouts
def test_rope_definition_passes_gradcheck(interleaved):
    theta = angles(torch.arange(3), 6)
    leaf = random(1, 2, 3, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference(x, theta.cos(), theta.sin(), interleaved), leaf)


def test_rope_gradient_of_q_alone_and_of_k_alone():
    q, k = (to_mps(x) for x in heads(torch.float32))
    for first in (True, False):
        leaf = (q if first else k).detach().requires_grad_()
        out = mpskernels.rope(leaf, k)[0] if first else mpskernels.rope(q, leaf)[1]
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        expected = mpskernels.rope(torch.ones_like(leaf), inverse=True)
        assert torch.equal(grad.cpu(), expected.cpu())


@dtypes
def test_rope_is_one_launch_and_deterministic(dtype):
    q, k = to_mps(list(heads(dtype)))
    _C.reset_launches()
    first = mpskernels.rope(q, k)
    assert sum(_C.launches()["rope"].values()) == 1
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, mpskernels.rope(q, k), strict=True))


def test_rope_compiles_once_for_all_offsets():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda q, offset: mpskernels.rope(q, offset=offset), fullgraph=True, backend=backend)
    q = to_mps(random(1, 2, 1, 8))
    for offset in range(10, 20):
        assert torch.equal(compiled(q, offset).cpu(), mpskernels.rope(q, offset=offset).cpu())
    assert len(graphs) <= 2  # the first offset, then all


def test_rope_from_several_threads():
    def work(seed):
        q, k = heads(torch.float32, d=8 * (1 + seed))
        for interleaved in (False, True):
            check(q, k, interleaved=interleaved, offset=seed)

    in_threads(work)


def test_rope_reaches_every_kernel():
    _C.reset_launches()
    for dtype in DTYPE_IDS:
        mpskernels.rope(to_mps(random(1, 1, 1, 8, dtype=dtype)))
    assert {label.split("?")[0] for label in _C.launches()["rope"]} == {
        name for name in _C.function_names() if name.startswith("rope_rotate")
    }


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


def x(**options):
    return empty(2, 3, 5, 8, **options)


I64 = {"dtype": torch.int64}
REJECTED = {
    "q_none": (lambda: ((None,), {}), TypeError, "expected q to be a tensor, got None"),
    "q_on_cpu": (
        lambda: ((x(device="cpu"),), {}),
        ValueError,
        'expected q on device mps, got cpu; move it with q.to("mps")',
    ),
    "q_dtype": (
        lambda: ((x(dtype=torch.int64),), {}),
        TypeError,
        "expected q of dtype float32, float16 or bfloat16, got int64",
    ),
    "q_dimensions": (lambda: ((empty(3, 5, 8),), {}), ValueError, "expected q.dim() == 4, got 3"),
    "k_on_meta": (
        lambda: ((x(), x(device="meta")), {}),
        ValueError,
        "expected k on device mps to match q, got meta",
    ),
    "k_dtype": (
        lambda: ((x(), x(dtype=torch.float16)), {}),
        TypeError,
        "expected k of dtype float32 to match q, got float16",
    ),
    "k_batch": (
        lambda: ((x(), empty(1, 3, 5, 8)), {}),
        ValueError,
        "expected k.size(0) == 2 to match q.size(0), got 1",
    ),
    "k_length": (
        lambda: ((x(), empty(2, 3, 4, 8)), {}),
        ValueError,
        "expected k.size(2) == 5 to match q.size(2), got 4",
    ),
    "k_columns": (
        lambda: ((x(), empty(2, 3, 5, 6)), {}),
        ValueError,
        "expected k.size(3) == 8 to match q.size(3), got 6",
    ),
    "dims_odd": (lambda: ((x(),), {"dims": 3}), ValueError, "expected an even count of dims, got 3"),
    "d_odd": (lambda: ((empty(1, 1, 1, 5),), {}), ValueError, "expected an even count of dims, got 5"),
    "dims_negative": (lambda: ((x(),), {"dims": -2}), ValueError, "expected dims >= 0, got -2"),
    "dims_many": (
        lambda: ((x(),), {"dims": 10}),
        ValueError,
        "expected dims <= q.size(3), which is 8, got 10",
    ),
    "dims_beyond_params": (
        lambda: ((empty(1, 1, 1, 514),), {}),
        NotImplementedError,
        "expected at most 512 dims where there is no cos and sin, got 514",
    ),
    "cos_alone": (lambda: ((x(), None, empty(5, 4)), {}), ValueError, "expected both cos and sin, or neither"),
    "cos_on_cpu": (
        lambda: ((x(), None, empty(5, 4, device="cpu"), empty(5, 4)), {}),
        ValueError,
        'expected cos on device mps, got cpu; move it with cos.to("mps")',
    ),
    "sin_dtype": (
        lambda: ((x(), None, empty(5, 4), empty(5, 4, dtype=torch.float16)), {}),
        TypeError,
        "expected sin of dtype float32 to match q, or float32, got float16",
    ),
    "table_dtypes": (
        lambda: ((x(dtype=torch.float16), None, empty(5, 4), empty(5, 4, dtype=torch.float16)), {}),
        TypeError,
        "expected sin of dtype float32 to match cos, got float16",
    ),
    "table_columns": (
        lambda: ((x(), None, empty(5, 3), empty(5, 3)), {}),
        ValueError,
        "expected cos.size(-1) == 4 or twice that, to match dims, got 3",
    ),
    "table_columns_interleaved": (
        lambda: ((x(), None, empty(5, 8), empty(5, 8)), {"interleaved": True}),
        ValueError,
        "expected cos.size(-1) == 4 for interleaved pairs, got 8",
    ),
    "table_rows": (
        lambda: ((x(), None, empty(7, 4), empty(7, 4)), {"offset": 3}),
        ValueError,
        "expected cos.size(-2) >= 8, the offset and q.size(2), got 7",
    ),
    "table_rows_differ": (
        lambda: ((x(), None, empty(7, 4), empty(8, 4)), {}),
        ValueError,
        "expected sin.size(-2) == 7 to match cos, got 8",
    ),
    "table_offset": (
        lambda: ((x(), None, empty(7, 4), empty(7, 4)), {"offset": -1}),
        ValueError,
        "expected an offset >= 0 where there are cos and sin, got -1",
    ),
    "table_batch": (
        lambda: ((x(), None, empty(3, 5, 4), empty(3, 5, 4)), {}),
        ValueError,
        "expected cos.size(0) == 2 to match q.size(0), got 3",
    ),
    "table_dimensions": (
        lambda: ((x(), None, empty(1, 5, 4), empty(1, 5, 4), empty(5, **I64)), {}),
        ValueError,
        "expected cos.dim() <= 2, got 3",
    ),
    "positions_dtype": (
        lambda: ((x(), None, None, None, empty(5)), {}),
        TypeError,
        "expected positions of dtype int32 or int64, got float32",
    ),
    "positions_length": (
        lambda: ((x(), None, None, None, empty(6, **I64)), {}),
        ValueError,
        "expected positions.size(-1) == 5 to match q.size(2), got 6",
    ),
    "positions_batch": (
        lambda: ((x(), None, None, None, empty(3, 5, **I64)), {}),
        ValueError,
        "expected positions.size(-2) == 2 to match q.size(0), got 3",
    ),
    "positions_dimensions": (
        lambda: ((x(), None, None, None, empty(1, 2, 5, **I64)), {}),
        ValueError,
        "expected positions.dim() <= 2, got 3",
    ),
    "positions_on_cpu": (
        lambda: ((x(), None, None, None, empty(5, device="cpu", **I64)), {}),
        ValueError,
        'expected positions on device mps, got cpu; move it with positions.to("mps")',
    ),
    "sections_alone": (
        lambda: ((x(),), {"sections": [2, 2]}),
        ValueError,
        "expected positions, of which each section has its own",
    ),
    "sections_dimensions": (
        lambda: ((x(), None, None, None, empty(2, 5, **I64)), {"sections": [2, 2]}),
        ValueError,
        "expected positions.dim() == 3, got 2",
    ),
    "sections_rows": (
        lambda: ((x(), None, None, None, empty(3, 2, 5, **I64)), {"sections": [2, 2]}),
        ValueError,
        "expected positions.size(0) == 2 to match sections, got 3",
    ),
    "sections_pairs": (
        lambda: ((x(), None, None, None, empty(2, 2, 5, **I64)), {"sections": [2, 3]}),
        ValueError,
        "expected sections of 4 pairs in all, got 5",
    ),
    "sections_negative": (
        lambda: ((x(), None, None, None, empty(2, 2, 5, **I64)), {"sections": [-1, 5]}),
        ValueError,
        "expected sections >= 0, got -1",
    ),
    "sections_many": (
        lambda: ((x(), None, None, None, empty(5, 2, 5, **I64)), {"sections": [1, 1, 1, 1, 0]}),
        NotImplementedError,
        "expected at most 4 sections, got 5",
    ),
    "interleaved_sections_alone": (
        lambda: ((x(),), {"interleaved_sections": True}),
        ValueError,
        "expected sections, to interleave",
    ),
    "interleaved_sections_pairs": (
        lambda: ((x(), None, None, None, empty(2, 2, 5, **I64)), {"sections": [1, 3], "interleaved_sections": True}),
        ValueError,
        "expected at most 2 pairs in section 1 of 2 interleaved ones, got 3",
    ),
    "sections_with_a_table": (
        lambda: ((x(), None, empty(9, 4), empty(9, 4), empty(2, 2, 5, **I64)), {"sections": [2, 2]}),
        ValueError,
        "expected no sections where there are cos and sin",
    ),
    **{
        f"base_{base}": (
            lambda base=base: ((x(),), {"base": base}),
            ValueError,
            f"expected a base > 0 that is finite in float32, got {base:g}",
        )
        for base in (0.0, -1.0, math.inf, math.nan)
    },
}


@pytest.mark.parametrize("case", REJECTED)
def test_rope_rejects(case):
    make, error, text = REJECTED[case]
    args, kwargs = make()
    assert_rejected("rope", args, kwargs, error, f"mpsk::rope: {text}")


@pytest.mark.parametrize(("name", "index"), [("cos", 2), ("sin", 3)])
def test_rope_refuses_gradients_of_its_table(name, index):
    args = [x(), None, empty(5, 4), empty(5, 4)]
    args[index].requires_grad_()
    for function in (mpskernels.rope, direct("rope")):
        with pytest.raises(NotImplementedError, match=f"mpsk::rope: no gradient for {name}, which requires grad"):
            function(*args)


def test_rope_passes_opcheck_with_every_option():
    q, k = to_mps(list(heads(torch.float16)))
    table = to_mps([random(2, 9, 16), random(2, 9, 16)])
    positions = to_mps(torch.arange(30).view(3, 2, 5))
    for args, kwargs in [
        ((q, k, *table), {"offset": 2, "inverse": True}),
        ((q, None, *to_mps([random(10, 16), random(10, 16)]), positions[0]), {}),
        ((q, k, None, None, positions), {"sections": [8, 4, 4]}),
        ((q, k, None, None, positions), {"sections": [6, 5, 5], "interleaved_sections": True}),
        ((q, None), {"dims": 8, "base": 500.0, "interleaved": True}),
    ]:
        torch.library.opcheck(direct("rope").default, args, kwargs)


@pytest.mark.parametrize("device", ["mps"])
def test_rope_agrees_with_transformers(device):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = heads(torch.float32)
    theta = angles(torch.arange(5), 32)
    cos, sin = (t.float().repeat(1, 1, 2) for t in (theta.cos(), theta.sin()))
    ours = mpskernels.rope(*(t.to(device) for t in (q, k, cos, sin)))
    for a, b in itertools.zip_longest(ours, apply_rotary_pos_emb(q, k, cos, sin)):
        torch.testing.assert_close(a.cpu(), b, atol=1e-6, rtol=1e-6)
