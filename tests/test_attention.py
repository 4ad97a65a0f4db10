import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from cases import DTYPE_IDS, assert_accurate, assert_rejected, dtypes, in_threads, random, to_mps

import mpskernels
from mpskernels import _C

HEAD_DIMS = [32, 64, 80, 96, 128]
head_dims = pytest.mark.parametrize("d", HEAD_DIMS)


def hidden_keys(q, k):
    """True where a causal query does not see a key."""
    return torch.ones(q.size(2), k.size(2)).triu(1).bool()


def reference(q, k, v, is_causal=False, scale=None):
    """In float64, with the scores."""
    group = q.size(1) // max(1, k.size(1))
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.size(3)) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(hidden_keys(q, k), -math.inf)
    if not k.size(2):
        return torch.zeros_like(q), scores
    return torch.softmax(scores, -1) @ v, scores


def check(q, k, v, is_causal=False, scale=None):
    """q, k, v on the CPU; returns what the op made."""
    out = mpskernels.attention(*to_mps((q, k, v)), is_causal=is_causal, scale=scale)
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    expected, scores = reference(q, k, v, is_causal, scale)
    # Scores in float32 are off by some roundings of their size; the weights, their exponentials, by as much relative to
    # themselves. The sums add a few roundings of the largest value; half and bfloat, one of the result.
    largest = scores[scores.isfinite()].abs().max().item() if scores.isfinite().any() else 0.0
    value = v.double().abs().max() if v.numel() else torch.tensor(0.0)
    error = 2**-24 * (8 + 2 * largest)
    info = torch.finfo(q.dtype)
    if q.dtype == torch.float32:
        scale, allowed = value.expand(expected.shape), error / info.eps
    else:
        scale, allowed = expected.abs() + value * (error / (0.5 * info.eps)) + info.smallest_normal, 0.5
    assert_accurate(out, expected, scale=scale, allowed=allowed)
    return out


def inputs(batch, q_heads, k_heads, q_length, k_length, d, dtype=torch.float32, size=1.0):
    q = random(batch, q_heads, q_length, d, dtype=dtype) * size
    k, v = (random(batch, k_heads, k_length, d, dtype=dtype, seed=seed) for seed in (1, 2))
    return q, k, v


def launched(call):
    """The pipelines that a call launches."""
    before = _C.launches().get("attention", {})
    call()
    return [label for label, count in _C.launches().get("attention", {}).items() if count != before.get(label, 0)]


# Around the edges of blocks of 32 queries and of 16 and 32 keys.
LENGTHS = [(1, 1), (1, 70), (7, 33), (32, 32), (33, 31), (40, 17), (64, 16), (65, 1), (70, 100)]


@dtypes
@head_dims
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("q_length", "k_length"), LENGTHS)
def test_attention_matches_reference(dtype, d, q_length, k_length, is_causal):
    check(*inputs(1, 2, 1, q_length, k_length, d, dtype), is_causal=is_causal)


@dtypes
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_attention_matches_reference_at_some_length(dtype, is_causal):
    check(*inputs(1, 1, 1, 257, 300, 64, dtype), is_causal=is_causal)


@dtypes
@pytest.mark.parametrize(("q_heads", "k_heads"), [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1)])
def test_attention_shares_key_heads(dtype, q_heads, k_heads):
    check(*inputs(2, q_heads, k_heads, 19, 23, 32, dtype), is_causal=True)


LAYOUTS = {
    "heads_after_rows": lambda t, b, h, n, d: t(b, n, h, d).transpose(1, 2),
    "packed_with_others": lambda t, b, h, n, d: t(b, n, 3, h, d)[:, :, 1].transpose(1, 2),
    "part_of_longer_rows": lambda t, b, h, n, d: t(b, h, n, d + 8)[..., :d],
    "unaligned_rows": lambda t, b, h, n, d: t(b, h, n, d + 3)[..., :d],
    "offset_aligned": lambda t, b, h, n, d: t(b, h, n, d + 8)[..., 8:],
    "offset_unaligned": lambda t, b, h, n, d: t(b, h, n, d + 1)[..., 1:],
    "part_of_a_cache": lambda t, b, h, n, d: t(b, h, n + 9, d)[:, :, 4 : 4 + n],
    "every_second_row": lambda t, b, h, n, d: t(b, h, 2 * n, d)[:, :, ::2],
    "every_second_column": lambda t, b, h, n, d: t(b, h, n, 2 * d)[..., ::2],
    "columns_before_rows": lambda t, b, h, n, d: t(b, h, d, n).transpose(2, 3),
    "reversed_dimensions": lambda t, b, h, n, d: t(d, n, h, b).permute(3, 2, 1, 0),
    "one_batch": lambda t, b, h, n, d: t(1, h, n, d).expand(b, h, n, d),
    "one_head": lambda t, b, h, n, d: t(b, 1, n, d).expand(b, h, n, d),
    "one_row": lambda t, b, h, n, d: t(b, h, 1, d).expand(b, h, n, d),
    "one_column": lambda t, b, h, n, d: t(b, h, n, 1).expand(b, h, n, d),
}


@dtypes
@pytest.mark.parametrize("which", ["q", "k", "v", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_reads_any_strides(dtype, layout, which):
    tensors = list(inputs(2, 2, 2, 21, 37, 32, dtype))
    for i, name in enumerate("qkv"):
        if which in (name, "all"):
            tensors[i] = LAYOUTS[layout](
                lambda *shape, seed=i: random(*shape, dtype=dtype, seed=seed), *tensors[i].shape
            )
    check(*tensors, is_causal=True)


def test_attention_loads_vectors_where_it_can():
    def loads_vectors(*tensors):
        [label] = launched(lambda: check(*tensors))
        return label.endswith("vectors=1")

    q, k, v = inputs(2, 2, 2, 5, 6, 32, torch.float16)
    rows = torch.cat([k, k], -1)
    assert loads_vectors(q, k, v)
    assert loads_vectors(q, rows[..., 8:40], v)
    assert not loads_vectors(q, rows[..., 4:36], v)
    assert not loads_vectors(q, k, torch.cat([v, v[..., :1]], -1)[..., :32])
    assert not loads_vectors(q.transpose(2, 3).contiguous().transpose(2, 3), k, v)
    assert loads_vectors(q[:1, :1, :1].expand(1, 1, 1, 32), k[:1, :1], v[:1, :1])


@dtypes
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("shape", "k_length"),
    [((0, 2, 3), 4), ((2, 0, 3), 4), ((2, 2, 0), 4), ((2, 2, 3), 0), ((0, 0, 0), 0)],
    ids=["no_batch", "no_heads", "no_queries", "no_keys", "nothing"],
)
def test_attention_handles_edges(dtype, shape, k_length, is_causal):
    batch, heads, q_length = shape
    out = check(*inputs(batch, heads, heads, q_length, k_length, 32, dtype), is_causal=is_causal)
    assert not out.any()


def test_attention_of_nothing_launches_nothing():
    assert launched(lambda: check(*inputs(1, 1, 1, 0, 5, 32))) == []


@pytest.mark.parametrize(("q_length", "k_length"), [(5, 40), (40, 5), (33, 64)])
def test_attention_is_causal_from_the_start(q_length, k_length):
    """Query i sees the keys up to i, as torch's does, whatever the lengths."""
    q, k, v = inputs(1, 1, 1, q_length, k_length, 32)
    out = check(q, k, v, is_causal=True).cpu()
    torch.testing.assert_close(out[0, 0, 0], v[0, 0, 0])
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, stock)
    # What a query does not see leaves no trace, whatever it is.
    k[:, :, 3:], v[:, :, 3:] = 1e4, -1e4
    changed = mpskernels.attention(*to_mps((q, k, v)), is_causal=True).cpu()
    assert torch.equal(changed[:, :, :3], out[:, :, :3])


@dtypes
@pytest.mark.parametrize("scale", [0.0, 1.0, -0.25, 1e-3])
def test_attention_scales_scores(dtype, scale):
    check(*inputs(1, 2, 2, 9, 40, 64, dtype), scale=scale)


@dtypes
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_attention_takes_large_scores(dtype, size, is_causal):
    q, k, v = inputs(1, 1, 1, 37, 70, 64, dtype, size)
    _, scores = reference(q, k, v)
    assert scores.abs().max() > 3 * size
    check(q, k, v, is_causal=is_causal)


SCORES = {
    "lowest": lambda n: torch.full((n,), -2e38),
    "low": lambda n: torch.full((n,), -1.5e38),
    "high": lambda n: torch.full((n,), 1.5e38),
    "highest": lambda n: torch.full((n,), 2e38),
    "rising": lambda n: torch.linspace(-2e38, 2e38, n),
    "falling": lambda n: torch.linspace(2e38, -2e38, n),
    "rising_below_0": lambda n: torch.linspace(-2e38, -1e30, n),
    "first": lambda n: torch.where(torch.arange(n) == 0, 2e38, -2e38),
    "last": lambda n: torch.where(torch.arange(n) == n - 1, 2e38, -2e38),
    "all_but_last": lambda n: torch.where(torch.arange(n) == n - 1, -2e38, 2e38),
    "two": lambda n: torch.where(torch.arange(n) % 40 == 7, 2e38, -2e38),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=DTYPE_IDS.get)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("case", SCORES)
def test_attention_takes_scores_of_any_size(dtype, is_causal, case):
    """No score is mistaken for a hidden one, however low; none of their differences overflows, however high."""
    q, k, v = torch.zeros(1, 1, 70, 32), torch.zeros(1, 1, 75, 32), random(1, 1, 75, 32, dtype=dtype)
    q[..., 3] = 2.0**60
    k[..., 3] = SCORES[case](75) * 2.0**-60
    q, k = q.to(dtype), k.to(dtype)
    expected, _ = reference(q, k, v, is_causal, scale=1.0)
    out = mpskernels.attention(*to_mps((q, k, v)), is_causal=is_causal, scale=1.0)
    assert_accurate(out, expected, scale=torch.ones(()), allowed=8.0 if dtype == torch.float32 else 2.0)


def test_attention_takes_low_scores_of_any_scale():
    q, k, v = torch.full((1, 1, 3, 32), -1e19), torch.full((1, 1, 5, 32), 5e17), torch.ones(1, 1, 5, 32)
    assert mpskernels.attention(*to_mps((q, k, v)), scale=0.9).eq(1).all()
    # The largest scale: of zeros and of scores that its product with log2(e) would overflow for.
    q, k = torch.zeros(1, 1, 3, 32), torch.zeros(1, 1, 5, 32)
    assert mpskernels.attention(*to_mps((q, k, v)), scale=3.4e38).eq(1).all()
    q[..., 0], k[..., 0] = 0.5, 1.0
    assert mpskernels.attention(*to_mps((q, k, v)), scale=3.4e38).eq(1).all()


def test_attention_of_scores_that_rise_and_fall():
    """The maximum changes with every block of keys, or never after the first."""
    q, v = torch.ones(1, 2, 33, 32), random(1, 2, 100, 32)
    rising = torch.linspace(-300, 300, 100)
    check(q, torch.stack([rising, rising.flip(0)]).view(1, 2, 100, 1).expand(1, 2, 100, 32), v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=DTYPE_IDS.get)
def test_attention_sums_in_float32(dtype):
    # 5000 equal weights: their sum, or a sum of so many values, stops short in either dtype.
    q, k, v = torch.zeros(1, 1, 3, 32), torch.zeros(1, 1, 5000, 32), torch.full((1, 1, 5000, 32), 0.5)
    out = check(q.to(dtype), k.to(dtype), v.to(dtype))
    assert out.eq(0.5).all()


@pytest.mark.slow
def test_attention_reads_past_4_gigabytes():
    rows, q = random(2, 32, dtype=torch.float16), torch.zeros(1, 1, 3, 32, dtype=torch.float16)
    memory = torch.empty(2**31 + 40, dtype=torch.float16, device="mps")
    for offset in (0, 1):  # with vectors and without
        far = memory.as_strided((2, 32), (2**31, 1), offset)
        far.copy_(rows)
        keys, heads, batches = far[None, None], far[None, :, None], far[:, None, None]
        mean = rows.double().mean(0).half()
        torch.testing.assert_close(mpskernels.attention(to_mps(q), keys, keys).cpu(), mean.expand(1, 1, 3, 32))
        assert torch.equal(mpskernels.attention(heads, heads, heads).cpu(), rows[None, :, None])
        assert torch.equal(mpskernels.attention(batches, batches, batches).cpu(), rows[:, None, None])


@dtypes
def test_attention_keeps_nan_and_inf_to_their_rows(dtype):
    q, k, v = inputs(1, 2, 2, 40, 50, 32, dtype)
    expected = mpskernels.attention(*to_mps((q, k, v))).cpu()
    q[0, 0, 5, 3] = math.nan
    out = mpskernels.attention(*to_mps((q, k, v))).cpu()
    assert out[0, 0, 5].isnan().all()
    out[0, 0, 5] = expected[0, 0, 5]
    assert torch.equal(out, expected)
    v[0, 1, 49, 7], v[0, 1, 2, 8] = math.nan, math.inf
    out = mpskernels.attention(*to_mps((q, k, v))).cpu()
    assert out[0, 1, :, 7].isnan().all()
    assert out[0, 1, :, 8].isinf().all()
    out[0, 1, :, 7:9] = expected[0, 1, :, 7:9]
    assert torch.equal(out[:, 1], expected[:, 1])
    k[0, 1, 4, 0] = math.nan
    assert mpskernels.attention(*to_mps((q, k, v))).cpu()[0, 1].isnan().all()


@dtypes
def test_attention_is_deterministic(dtype):
    tensors = to_mps(inputs(2, 4, 2, 70, 90, 64, dtype))
    first = mpskernels.attention(*tensors, is_causal=True).cpu()
    for _ in range(3):
        assert torch.equal(mpskernels.attention(*tensors, is_causal=True).cpu(), first)


def test_attention_from_several_threads():
    def work(seed):
        for d in HEAD_DIMS:
            q, k, v = (random(1, 2, 20 + seed, d, seed=3 * seed + i) for i in range(3))
            out = mpskernels.attention(*to_mps((q, k, v)), is_causal=seed % 2 == 0).cpu()
            expected, _ = reference(q, k, v, seed % 2 == 0)
            torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)

    in_threads(work)


def test_attention_reaches_every_kernel():
    text = (Path(__file__).parents[1] / "metal/attention_variants.h").read_text()
    listed = re.findall(r"^\s*X\((\w+), \w+, (\d+), (\d+)\)", text, re.MULTILINE)
    built = {f"attention_flash_{dtype}_d{d}_bk{bk}" for dtype, d, bk in listed}
    reached = {
        label.split("?")[0]
        for dtype, d in itertools.product(DTYPE_IDS, HEAD_DIMS)
        for label in launched(lambda dtype=dtype, d=d: check(*inputs(1, 1, 1, 1, 1, d, dtype)))
    }
    assert reached == built == {name for name in _C.function_names() if name.startswith("attention_")}


def empty(*shape, dtype=torch.float32, device="mps", **options):
    return torch.empty(shape, dtype=dtype, device=device, **options)


def three(q=(2, 4, 6, 32), k=(2, 2, 8, 32), v=None, **options):
    """q, k and v of these shapes; `options` such as k_dtype change one of them."""
    changed = {name: {} for name in "qkv"}
    for key, value in options.items():
        name, option = key.split("_", 1)
        changed[name][option] = value
    return tuple(empty(*shape, **changed[name]) for name, shape in zip("qkv", (q, k, v or k), strict=True))


REJECTED = {
    "q_on_cpu": (
        lambda: three(q_device="cpu"),
        ValueError,
        'expected q on device mps, got cpu; move it with q.to("mps")',
    ),
    "k_on_cpu": (
        lambda: three(k_device="cpu"),
        ValueError,
        'expected k on device mps, got cpu; move it with k.to("mps")',
    ),
    "v_on_cpu": (
        lambda: three(v_device="cpu"),
        ValueError,
        'expected v on device mps, got cpu; move it with v.to("mps")',
    ),
    "q_dtype": (
        lambda: three(q_dtype=torch.int8),
        TypeError,
        "expected q of dtype float32, float16 or bfloat16, got int8",
    ),
    "k_dtype": (lambda: three(k_dtype=torch.float16), TypeError, "expected k of dtype float32 to match q, got float16"),
    "v_dtype": (
        lambda: three(v_dtype=torch.bfloat16),
        TypeError,
        "expected v of dtype float32 to match q, got bfloat16",
    ),
    "q_dimensions": (lambda: three(q=(4, 6, 32)), ValueError, "expected q.dim() == 4, got 3"),
    "k_dimensions": (lambda: three(k=(8, 32), v=(2, 2, 8, 32)), ValueError, "expected k.dim() == 4, got 2"),
    "v_dimensions": (lambda: three(v=(1, 2, 2, 8, 32)), ValueError, "expected v.dim() == 4, got 5"),
    "k_batch": (lambda: three(k=(3, 2, 8, 32)), ValueError, "expected k.size(0) == 2 to match q.size(0), got 3"),
    "k_head_dim": (lambda: three(k=(2, 2, 8, 64)), ValueError, "expected k.size(3) == 32 to match q.size(3), got 64"),
    "v_batch": (lambda: three(v=(1, 2, 8, 32)), ValueError, "expected v.size(0) == 2 to match q.size(0), got 1"),
    "v_heads": (lambda: three(v=(2, 1, 8, 32)), ValueError, "expected v.size(1) == 2 to match k.size(1), got 1"),
    "v_length": (lambda: three(v=(2, 2, 7, 32)), ValueError, "expected v.size(2) == 8 to match k.size(2), got 7"),
    "v_head_dim": (lambda: three(v=(2, 2, 8, 64)), ValueError, "expected v.size(3) == 32 to match q.size(3), got 64"),
    "heads": (
        lambda: three(k=(2, 3, 8, 32)),
        ValueError,
        "expected q.size(1) to be a multiple of k.size(1) == 3, got 4",
    ),
    "no_k_heads": (
        lambda: three(k=(2, 0, 8, 32)),
        ValueError,
        "expected q.size(1) to be a multiple of k.size(1) == 0, got 4",
    ),
    "head_dim": (
        lambda: three(q=(2, 4, 6, 48), k=(2, 2, 8, 48)),
        NotImplementedError,
        "expected q.size(3) in (32, 64, 80, 96, 128), got 48",
    ),
    "q_on_meta": (
        lambda: three(q_device="meta"),
        ValueError,
        "expected k on device meta to match q, got mps",
    ),
    "k_on_meta": (
        lambda: three(k_device="meta"),
        ValueError,
        "expected k on device mps to match q, got meta",
    ),
    "v_on_meta": (
        lambda: three(v_device="meta"),
        ValueError,
        "expected v on device mps to match q, got meta",
    ),
    "q_none": (lambda: (None, *three()[1:]), TypeError, "expected q to be a tensor, got None"),
    "v_none": (lambda: (*three()[:2], None), TypeError, "expected v to be a tensor, got None"),
    "all_none": (lambda: (None, None, None), TypeError, "expected q to be a tensor, got None"),
    "gradient": (
        lambda: three(v_requires_grad=True),
        NotImplementedError,
        "no gradient for v, which requires grad; call under torch.no_grad() or pass it detached",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_attention_rejects(case):
    args, error, text = REJECTED[case]
    assert_rejected("attention", args(), {}, error, f"mpsk::attention: {text}")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 1e39, -1e300])
def test_attention_rejects_a_scale(scale):
    text = f"mpsk::attention: expected a scale that is finite in float32, got {scale:g}"
    assert_rejected("attention", three(), {"scale": scale}, ValueError, text)


@pytest.mark.parametrize(
    ("q_shape", "text"),
    [
        ((1, 1, 2**32, 32), "expected q.size(2) <= 4294967264, got 4294967296"),
        ((1, 2**30, 1, 32), "expected q.size(1) <= 1073741823, got 1073741824"),
        ((2**32, 1, 1, 32), "expected q.size(0) <= 4294967295, got 4294967296"),
    ],
    ids=["length", "heads", "batch"],
)
def test_attention_rejects_what_its_grid_cannot_hold(q_shape, text):
    q, k = empty(1, 1, 1, 1).expand(q_shape), empty(1, 1, 1, 1).expand(q_shape[0], 1, 1, 32)
    with pytest.raises(ValueError, match="mpsk::attention: ") as info:
        mpskernels.attention(q, k, k)
    assert str(info.value) == f"mpsk::attention: {text}"


@dtypes
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("sizes", [(1, 4, 2, 9, 7), (2, 1, 1, 3, 0), (0, 2, 1, 3, 4)], ids=str)
def test_attention_passes_opcheck(dtype, is_causal, sizes):
    args = to_mps(inputs(*sizes, 32, dtype))
    torch.library.opcheck(torch.ops.mpsk.attention.default, args, {"is_causal": is_causal, "scale": 0.5})


def test_attention_compiles_once_for_all_sizes():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(
        lambda q, k, v: mpskernels.attention(q, k, v, is_causal=True), backend=backend, fullgraph=True, dynamic=True
    )
    for batch, q_length, k_length in [(3, 5, 7), (4, 34, 6), (5, 6, 33)]:  # equal sizes would be compiled as equal
        args = to_mps(inputs(batch, 8, 2, q_length, k_length, 32))
        assert torch.equal(compiled(*args).cpu(), mpskernels.attention(*args, is_causal=True).cpu())
    assert len(graphs) == 1
