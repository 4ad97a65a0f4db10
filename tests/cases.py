"""What the tests and benchmarks of all families share: dtypes, accuracy, samples of every op, and ways to call them."""

import contextlib
import math
import threading
import unittest.mock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import mpskernels

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPE_IDS = {dtype: name for name, dtype in DTYPES.items()}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# Error that is allowed whatever stock torch does, in eps of the dtype (the distance from 1 to the next number).
# Half and bfloat results are float32 results rounded once: half an eps, and a little for what float32 itself loses.
# Float32 results lose an eps or so in each of a few steps; stock torch's wider sums of products may lose none.
ALLOWED = {torch.float32: 4.0, torch.float16: 0.51, torch.bfloat16: 0.51}

_accuracy = []


def take_accuracy() -> list[tuple[str, float, float]]:
    """(dtype, error, allowed) of each assert_accurate since the last call."""
    taken = list(_accuracy)
    _accuracy.clear()
    return taken


def worst_error(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    """The worst error of an element against `expected` (float64), in eps of the dtype of `actual` times `scale`.

    `scale` is the size of the numbers whose rounding makes the error: |expected| itself unless terms may cancel.
    """
    info = torch.finfo(actual.dtype)
    actual = actual.detach().cpu().double()
    scale = (expected if scale is None else scale).abs().clamp(min=info.smallest_normal)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    errors = torch.where(same, 0.0, (actual - expected).abs() / scale)
    return math.inf if errors.isnan().any() else errors.max().item() / info.eps if errors.numel() else 0.0


def assert_accurate(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    stock: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    allowed: float | None = None,
) -> None:
    """Asserts that the worst error is at most `allowed`, or at most twice that of stock torch on the CPU."""
    assert actual.device.type == "mps"
    assert actual.shape == expected.shape
    assert expected.dtype == torch.float64
    limit = ALLOWED[actual.dtype] if allowed is None else allowed
    if stock is not None:
        assert stock.dtype == actual.dtype
        limit = max(limit, 2 * worst_error(stock, expected, scale))
    error = worst_error(actual, expected, scale)
    _accuracy.append((DTYPE_IDS[actual.dtype], error, limit))
    print(f"worst error {error:.3f} eps of {DTYPE_IDS[actual.dtype]}, {limit:.3f} allowed")
    assert error <= limit


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def to_mps(tree):
    """Moves the tensors of a nest of tuples, lists and dicts; views keep their strides and storage offset."""

    def move(x):
        if not isinstance(x, torch.Tensor):
            return x
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to("mps")
        return storage.as_strided(x.shape, x.stride(), x.storage_offset())

    return torch.utils._pytree.tree_map(move, tree)


def norm_samples() -> dict:
    """The calls of the norms and of their backward ops, with what each op calls its tensors."""

    def call(rows: int, parameters: int, *rest, **kwargs):
        def make(dtype: torch.dtype):
            tensors = [random(3, 40, dtype=dtype, seed=seed) for seed in range(rows)]
            tensors += [random(40, dtype=dtype, seed=rows + seed) for seed in range(parameters)]
            return (*tensors, *rest), kwargs

        return make

    wanted = (True, True)
    return {
        "layer_norm": call(1, 2, 1e-5),
        "add_rms_norm": call(2, 1, 1e-6, offset=1.0),
        "add_layer_norm": call(2, 2, 1e-5),
        "gated_rms_norm": call(2, 1, 1e-6, norm_before_gate=False),
        "modulated_norm": call(3, 2, 1e-6, rms=True),
        "group_norm": lambda dtype: (
            (random(2, 6, 3, 4, dtype=dtype), 3, random(6, dtype=dtype, seed=1), random(6, dtype=dtype, seed=2), 1e-5),
            {"silu": True},
        ),
        "group_norm_backward": lambda dtype: (
            (
                random(2, 6, 3, 4, dtype=dtype, seed=3),
                random(2, 6, 3, 4, dtype=dtype),
                3,
                random(6, dtype=dtype, seed=1),
                random(6, dtype=dtype, seed=2),
                1e-5,
                True,
                *wanted,
            ),
            {},
        ),
        "rms_norm_backward": call(2, 1, 1e-6, 1.0, *wanted),
        "layer_norm_backward": call(2, 2, 1e-5, *wanted),
        "add_rms_norm_backward": call(3, 1, 1e-6, 0.0, *wanted),
        "add_layer_norm_backward": call(3, 2, 1e-5, *wanted),
        "gated_rms_norm_backward": call(3, 1, 1e-6, True, *wanted),
        "modulated_norm_backward": call(3, 2, 1e-6, False, *wanted),
    }


def gated_sample(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return random(5, 12, dtype=dtype), random(5, 12, dtype=dtype, seed=1)


TARGETS = torch.tensor([3, 0, 23, -100, 7])

# A sample call of every op: op -> dtype -> (args, kwargs), on the CPU.
SAMPLES = {
    "rms_norm": lambda dtype: ((random(3, 40, dtype=dtype), random(40, dtype=dtype, seed=1), 1e-6), {}),
    "matmul": lambda dtype: ((random(2, 5, 7, dtype=dtype), random(7, 9, dtype=dtype, seed=1)), {}),
    "linear": lambda dtype: (
        (*(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 5, 7), (9, 7), (9,)])),),
        {"activation": "silu"},
    ),
    "linear_saving": lambda dtype: (
        (
            *(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 5, 7), (9, 7), (9,)])),
            "gelu",
            random(2, 5, 9, dtype=dtype, seed=3),
        ),
        {},
    ),
    "linear_backward": lambda dtype: (
        (random(5, 9, dtype=dtype), random(5, 9, dtype=dtype, seed=1)),
        {"activation": "gelu_tanh", "bias": True},
    ),
    "gated_linear": lambda dtype: (
        tuple(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 5, 7), (9, 7), (9, 7)])),
        {"activation": "gelu"},
    ),
    "gated_linear_saving": lambda dtype: (
        (*(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 5, 7), (9, 7), (9, 7)])), "silu"),
        {},
    ),
    "gated_linear_backward": lambda dtype: (
        tuple(random(5, 9, dtype=dtype, seed=seed) for seed in range(3)),
        {"activation": "silu"},
    ),
    "grouped_matmul": lambda dtype: (
        (
            random(11, 7, dtype=dtype),
            random(3, 7, 9, dtype=dtype, seed=1),
            torch.tensor([4, 4, 11], dtype=torch.int32),
            torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], dtype=torch.int32),
        ),
        {},
    ),
    "grouped_matmul_backward": lambda dtype: (
        (
            random(11, 9, dtype=dtype),
            random(11, 7, dtype=dtype, seed=1),
            torch.tensor([4, 4, 11], dtype=torch.int32),
            None,
        ),
        {},
    ),
    "grouped_matmul_scatter": lambda dtype: (
        (random(5, 7, dtype=dtype), torch.tensor([2, 0, 2, 3, 0], dtype=torch.int32), 4),
        {},
    ),
    "sum_matmuls": lambda dtype: (
        (random(2, 3, 5, 7, dtype=dtype), random(2, 3, 7, 9, dtype=dtype, seed=1), 1),
        {},
    ),
    "add_matmuls": lambda dtype: (
        tuple(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(5, 7), (7, 9), (5, 7), (7, 9)])),
        {},
    ),
    "attention": lambda dtype: (
        tuple(random(1, 2, 6, 32, dtype=dtype, seed=seed) for seed in range(3)),
        {"is_causal": True},
    ),
    **norm_samples(),
    "rope": lambda dtype: (
        (
            random(2, 4, 3, 16, dtype=dtype),
            random(2, 2, 3, 16, dtype=dtype, seed=1),
            random(40, 8),
            random(40, 8, seed=1),
            torch.tensor([[1, 5, 39], [0, 2, 2]]),
        ),
        {"dims": 16, "offset": 0},
    ),
    "qk_norm_rope": lambda dtype: (
        (
            random(2, 4, 3, 16, dtype=dtype),
            random(2, 2, 3, 16, dtype=dtype, seed=1),
            *(random(16, dtype=dtype, seed=seed) for seed in (2, 3)),
            1e-6,
            random(40, 8),
            random(40, 8, seed=1),
            torch.tensor([[1, 5, 39], [0, 2, 2]]),
        ),
        {"weight_offset": 1.0},
    ),
    "qk_norm_rope_backward": lambda dtype: (
        (
            *(random(2, heads, 3, 16, dtype=dtype, seed=seed) for seed, heads in enumerate((4, 2, 4, 2))),
            *(random(16, seed=seed) for seed in (4, 5)),
            1e-6,
            None,
            None,
            torch.tensor([[1, 5, 39], [0, 2, 2]]),
        ),
        {"dims": 8, "interleaved": True},
    ),
    "softmax": lambda dtype: (
        (random(2, 3, 5, 24, dtype=dtype), random(5, 24, seed=1) > -1),
        {"is_causal": True, "scale": 0.5},
    ),
    "log_softmax": lambda dtype: ((random(3, 24, dtype=dtype), random(24, seed=1)), {"soft_cap": 2.0}),
    "softmax_backward": lambda dtype: (
        tuple(random(3, 24, dtype=dtype, seed=seed) for seed in range(3)),
        {"soft_cap": 2.0},
    ),
    "log_softmax_backward": lambda dtype: ((random(3, 24, dtype=dtype), random(3, 24, dtype=dtype), None), {}),
    "cross_entropy": lambda dtype: (
        (random(5, 24, dtype=dtype), TARGETS),
        {"label_smoothing": 0.1, "z_loss": 1e-3},
    ),
    "cross_entropy_backward": lambda dtype: (
        (random(5), random(5, 24, dtype=dtype, seed=1), TARGETS, random(5, seed=2) + 4, torch.empty(0)),
        {"reduction": "none"},
    ),
    "linear_cross_entropy": lambda dtype: (
        (random(5, 16, dtype=dtype), random(24, 16, dtype=dtype, seed=1), TARGETS),
        {"chunk": 2, "soft_cap": 3.0},
    ),
    "linear_cross_entropy_backward": lambda dtype: (
        (
            random(5, seed=3),
            random(5, 16, dtype=dtype),
            random(24, 16, dtype=dtype, seed=1),
            TARGETS,
            random(5, seed=2) + 8,
            torch.empty(0),
        ),
        {"chunk": 2, "reduction": "none"},
    ),
    "swiglu": lambda dtype: (gated_sample(dtype), {}),
    "geglu": lambda dtype: (gated_sample(dtype), {"approximate": "tanh"}),
    "reglu": lambda dtype: ((random(5, 24, dtype=dtype),), {}),
    "swiglu_backward": lambda dtype: ((random(5, 12, dtype=dtype, seed=2), *gated_sample(dtype)), {}),
    "geglu_backward": lambda dtype: (
        (random(5, 12, dtype=dtype, seed=2), *gated_sample(dtype)),
        {"approximate": "none"},
    ),
    "reglu_backward": lambda dtype: ((random(5, 12, dtype=dtype), random(5, 24, dtype=dtype, seed=1), None), {}),
}
ops = pytest.mark.parametrize("op", SAMPLES)


def sample(op: str, dtype: torch.dtype = torch.float32):
    return to_mps(SAMPLES[op](dtype))


def direct(op: str):
    return getattr(torch.ops.mpsk, op)


def typed(op: str):
    """The op's typed function, which a backward op has not."""
    return getattr(mpskernels, op, direct(op))


def has_gradient(op: str) -> bool:
    """Whether its gradient is registered, rather than refused."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mpsk::{op}", "ADInplaceOrView")


def all_equal(actual, expected) -> bool:
    """Whether two results of an op, tensors or nests of them, hold the same values."""
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (actual, expected)), strict=True)
    return all(torch.equal(a.cpu(), e.cpu()) for a, e in pairs)


@contextlib.contextmanager
def without_stock_ops():
    """Python's ways to the stock ops that do what ours do raise here."""

    def refuse(*args, **kwargs):
        raise AssertionError("a stock op was called")

    names = ["mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "rms_norm", "softmax", "rsqrt", "mul", "pow"]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(unittest.mock.patch.object(torch, name, refuse))
        for name in ["linear", "rms_norm", "softmax", "scaled_dot_product_attention"]:
            stack.enter_context(unittest.mock.patch.object(F, name, refuse))
        for name in ["__matmul__", "matmul", "mm", "bmm", "mul", "__mul__", "softmax"]:
            stack.enter_context(unittest.mock.patch.object(torch.Tensor, name, refuse))
        yield


def assert_rejected(op: str, args: tuple, kwargs: dict, error: type[Exception], text: str) -> None:
    """Asserts that the same error comes from the op, its typed function, its fake and a traced call."""

    def caught(function, *call_args, **call_kwargs) -> Exception:
        with pytest.raises(Exception) as info:  # noqa: PT011  (its type and text are what the caller looks at)
            function(*call_args, **call_kwargs)
        return info.value

    def compiled(function):
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, backend="eager")

    for function in (direct(op), typed(op)):
        found = caught(function, *args, **kwargs)
        assert (type(found), str(found)) == (error, text)
    mode = FakeTensorMode()
    fake_args, fake_kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
    with mode:
        found = caught(direct(op), *fake_args, **fake_kwargs)
    assert (type(found), str(found)) == (error, text)
    assert text in str(caught(compiled(typed(op)), *args, **kwargs))


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """Runs work(0), work(1), ... at once, each in a thread of its own, and raises what one of them raised."""
    all_there = threading.Barrier(count)

    def start(number: int) -> None:
        all_there.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(start, number) for number in range(count)]:
            done.result()
