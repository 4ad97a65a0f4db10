"""The main job on real input: a Llama model reads a text on device mps, its norms, linear layers and attention ours.

The model is small and its weights are seeded here, so nothing is downloaded; what is under test is the arithmetic. The
same model runs three times: on our kernels, as stock transformers on the CPU in the same dtype, and in fp64.
"""

import importlib.metadata
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import mpskernels
from mpskernels import _C

LAYERS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The logits may be this much further from fp64 than the stock CPU model's in the same dtype. In fp32 the order of sums
# counts: a CPU's BLAS has dozens of partial sums for each output, a GPU's tile has one. In bf16 rounding hides that.
LOGITS_BOUND = {"fp32": 4.0, "bf16": 1.5}
# One op against fp64 on the same inputs, in units of the dtype's epsilon relative to the largest value: fp32 adds up
# hundreds of products, bf16 accumulates in fp32 and rounds the result and, in attention, the weights.
OP_BOUND = {"fp32": 64.0, "bf16": 1.0}
# Calls of each op in one pass of the model.
EXPECTED = {"attention": LAYERS, "linear": 7 * LAYERS + 1, "rms_norm": 2 * LAYERS + 1, "rope": LAYERS, "swiglu": LAYERS}
# Stock torch for the same jobs; none of these may touch the device.
STOCK = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "softmax", "scaled_dot_product", "rms_norm", "layer_norm")


def rotated(*heads_and_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    *heads, cos, sin = heads_and_table
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    halves = [x.chunk(2, -1) for x in heads]
    return tuple(torch.cat([a, b], -1) * cos + torch.cat([-b, a], -1) * sin for a, b in halves)


REFERENCE = {
    "rope": rotated,
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "rms_norm": lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps),
    "linear": lambda x, weight, bias=None, **kwargs: F.linear(x, weight, bias),
    "attention": lambda q, k, v, *, is_causal=False, scale=None: F.scaled_dot_product_attention(
        q, k, v, is_causal=is_causal, scale=scale, enable_gqa=True
    ),
}


def error(ours: torch.Tensor | tuple, reference: torch.Tensor | tuple) -> float:
    """The largest difference, relative to the largest value; of several results the worst. NaN counts as infinite."""
    if isinstance(ours, tuple):
        return max(map(error, ours, reference))
    worst = ((ours.detach().cpu().double() - reference).abs().max() / reference.abs().max()).item()
    return worst if worst == worst else float("inf")


def fp64(argument):
    return argument.detach().cpu().double() if isinstance(argument, torch.Tensor) else argument


class Audit(TorchDispatchMode):
    """Watches every op that runs under it: ours are timed and compared with fp64, stock ones for the same job noted."""

    def __init__(self, progress) -> None:
        super().__init__()
        self.progress = progress
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)
        self.op_of: dict[str, str] = {}
        self.problems: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        namespace, op = func.name().split("::")
        op = op.split(".")[0]
        if namespace != "mpsk":
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor) and out.device.type == "mps" and any(name in op for name in STOCK):
                self.problems.append(f"stock {func.name()} ran on the device")
            return out
        before = _C.launches().get(op, {})
        torch.mps.synchronize()
        start = time.perf_counter()
        out = func(*args, **kwargs)
        torch.mps.synchronize()
        seconds = time.perf_counter() - start
        moved = [kernel for kernel, count in _C.launches().get(op, {}).items() if count > before.get(kernel, 0)]
        if not moved:
            self.problems.append(f"a call of {op} launched no kernel")
        kernels = " + ".join(moved)
        reference = REFERENCE[op](*map(fp64, args), **{name: fp64(value) for name, value in kwargs.items()})
        self.op_of[kernels] = op
        self.calls[kernels] += 1
        self.seconds[kernels] += seconds
        self.errors[kernels] = max(self.errors[kernels], error(out, reference))
        self.progress.update()
        return out


def text(path: str | None) -> bytes:
    """The file, else this project's README: from the checkout, or from the installed package's own description."""
    readme = Path(__file__).resolve().parents[1] / "README.md"
    if path is not None or readme.exists():
        return Path(path or readme).read_bytes()
    return importlib.metadata.metadata("mpskernels").get_payload().encode()


def make_model():
    """Grouped-query heads (4 on 2) of 64, and weights wide enough that attention is far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden = 256
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=704,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        initializer_range=hidden**-0.5,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def exact(model):
    """The same model in fp64 throughout: transformers' own norm computes in fp32, torch's in the dtype of its input."""
    model = model.double()
    for name, module in list(model.named_modules()):
        if hasattr(module, "variance_epsilon"):
            norm = torch.nn.RMSNorm(module.weight.size(0), eps=module.variance_epsilon, device="meta")
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def run(path: str | None, tokens: int) -> int:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import copy

    from tqdm import tqdm

    from mpskernels.integrations.transformers import use_mpskernels

    simulated = sys.platform != "darwin"
    if simulated:
        mpskernels.simulator.enable()
    ids = torch.tensor(list(text(path)[:tokens]))[None]
    info = mpskernels.info()
    print(f"A Llama model of {LAYERS} layers reads {ids.numel()} bytes on {info.device}", end="")
    print(", simulated in software on this CPU" if simulated else "")
    base = make_model()
    problems: list[str] = []
    rows: list[tuple[str, ...]] = []
    verdicts: list[str] = []
    with torch.no_grad(), tqdm(total=len(DTYPES) * sum(EXPECTED.values()), unit="op", file=sys.stdout) as progress:
        for name, dtype in DTYPES.items():
            progress.set_description(name)
            stock = copy.deepcopy(base).to(dtype)
            reference = exact(copy.deepcopy(stock))(ids).logits
            ours = use_mpskernels(copy.deepcopy(stock)).to("mps")
            on_device = ids.to("mps")
            _C.reset_launches()
            audit = Audit(progress)
            with audit:
                logits = ours(on_device).logits
            epsilon = torch.finfo(dtype).eps
            calls = Counter()
            for kernels, count in sorted(audit.calls.items(), key=lambda item: (audit.op_of[item[0]], item[0])):
                op, worst = audit.op_of[kernels], audit.errors[kernels]
                calls[op] += count
                rows.append((name, op, kernels, f"{count}", f"{worst:.1e}", f"{audit.seconds[kernels] * 1e3:.0f}"))
                if worst > OP_BOUND[name] * epsilon:
                    problems.append(f"{name} {kernels}: error {worst:.1e} exceeds {OP_BOUND[name] * epsilon:.1e}")
            problems += [f"{name} {problem}" for problem in sorted(set(audit.problems))]
            launched = {op: sum(kernels.values()) for op, kernels in _C.launches().items()}
            for op, expected in EXPECTED.items():
                got = calls[op], launched.get(op, 0)
                if got[0] != expected or got[1] < expected:
                    problems.append(f"{name} {op}: {got[0]} calls and {got[1]} launches, not {expected}")
            mine, theirs = error(logits, reference), error(stock(ids).logits, reference)
            same = (logits.cpu().argmax(-1) == reference.argmax(-1)).float().mean().item()
            verdicts.append(
                f"{name}  logits against fp64: ours {mine:.2e}, stock CPU model {theirs:.2e} "
                f"(bound {LOGITS_BOUND[name]:g} x that); same next byte as fp64 at {same:.1%} of positions"
            )
            if mine > LOGITS_BOUND[name] * theirs:
                problems.append(f"{name} logits: error {mine:.2e} exceeds {LOGITS_BOUND[name]:g} x {theirs:.2e}")
    print()
    header = ("dtype", "op", "kernel variant", "calls", "error vs fp64", "ms simulated" if simulated else "ms")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = zip(row, widths, "<<<>>>", strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, width, side in cells))
    print("\nErrors are the largest difference relative to the largest value, on the same inputs.")
    print(*verdicts, sep="\n")
    if simulated:
        print(f"The device is simulated ({info.device}, in software): these times are not GPU times.")
    for problem in problems:
        print(f"OFF: {problem}", file=sys.stderr)
    print("Something is off." if problems else "All as it should be: no op fell back, every error within its bound.")
    return 1 if problems else 0
