"""torch's device `mps` on the software device: what stock torch does there agrees with the CPU."""

import copy
import io
import os
import pickle
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mpskernels import simulator

simulator.enable()

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.fixture(scope="module")
def shaders():
    return simulator.compile_shader("""
        #include <metal_stdlib>
        using namespace metal;
        kernel void add(device float* y, constant float& value, uint i [[thread_position_in_grid]]) { y[i] += value; }
        kernel void copy(device const float* x, device float* y, uint i [[thread_position_in_grid]]) { y[i] = x[i]; }
        kernel void faulty(device float* y, uint i [[thread_position_in_grid]]) {
          if (i < 3) y[i] = simd_shuffle(y[i], 9);
        }
    """)


def sample(shape, dtype):
    torch.manual_seed(0)
    return (torch.randn(shape) * 3).to(dtype)


# Creation and copies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "create",
    [
        lambda **kw: torch.zeros(2, 3, **kw),
        lambda **kw: torch.ones(2, 3, dtype=torch.int32, **kw),
        lambda **kw: torch.full((2, 3), 1.5, **kw),
        lambda **kw: torch.tensor([[1.0, 2.0], [3.0, 4.0]], **kw),
        lambda **kw: torch.tensor(7, **kw),
        lambda **kw: torch.arange(2, 11, 3, **kw),
        lambda **kw: torch.linspace(0, 1, 5, **kw),
        lambda **kw: torch.logspace(0, 2, 3, **kw),
        lambda **kw: torch.eye(3, **kw),
        lambda **kw: torch.tril_indices(3, 3, **kw),
        lambda **kw: torch.zeros(0, 4, **kw),
        lambda **kw: torch.empty_strided((2, 3), (1, 2), **kw).fill_(2),
        lambda **kw: torch.zeros(2, 3, 4, 5, **kw).to(memory_format=torch.channels_last),
        lambda **kw: torch.ones(3, **kw).new_full((2,), 4),
        lambda **kw: torch.hann_window(4, **kw),
    ],
)
def test_creation_matches_cpu(create):
    made, expected = create(device="mps"), create(device="cpu")
    assert made.device == torch.device("mps:0")
    assert made.stride() == expected.stride()
    assert_close(made.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copy_keeps_every_dtype(dtype):
    x = sample((3, 5), dtype)
    there = x.to("mps")
    assert there.is_mps
    assert there.dtype == dtype
    assert_close(there.cpu(), x)
    assert_close(there.clone().to("cpu"), x)


@pytest.mark.parametrize("to", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool], ids=str)
def test_copy_converts_on_the_way(to):
    x = sample((3, 5), torch.float32)
    assert_close(x.to("mps", to).cpu(), x.to(to))
    assert_close(x.to("mps").to("cpu", to), x.to(to))
    assert_close(x.to("mps").to(to).cpu(), x.to(to))


VIEWS = {
    "transposed": lambda t: t.transpose(0, 2),
    "offset": lambda t: t[1:, 2:],
    "strided": lambda t: t[::2, :, ::3],
    "select": lambda t: t[:, 1],
    "expanded": lambda t: t[:, :1].expand(-1, 4, -1),
    "reshaped": lambda t: t.view(-1)[3:51].view(6, 8),
    "unfolded": lambda t: t.unfold(2, 3, 2),
    "diagonal": lambda t: t.diagonal(dim1=1, dim2=2),
    "scalar": lambda t: t[1, 2, 3],
    "empty": lambda t: t[:, :0],
}


@pytest.mark.parametrize("view", VIEWS)
def test_copy_of_views(view):
    x = sample((3, 5, 7), torch.float32)
    there = VIEWS[view](x.to("mps"))
    here = VIEWS[view](x)
    assert there.stride() == here.stride()
    assert there.storage_offset() == here.storage_offset()
    assert_close(there.cpu(), here)
    assert_close(here.to("mps").cpu(), here)
    assert_close(there.contiguous().cpu(), here.contiguous())


@pytest.mark.parametrize("view", [name for name in VIEWS if name not in ("expanded", "unfolded")])
def test_copy_into_views(view):
    x = torch.zeros(3, 5, 7)
    expected, made, back = x.clone(), x.to("mps"), x.clone()
    values = sample(VIEWS[view](x).shape, torch.float32)
    VIEWS[view](expected).copy_(values)
    VIEWS[view](made).copy_(values)
    VIEWS[view](back).copy_(values.to("mps"))
    assert_close(made.cpu(), expected)
    assert_close(back, expected)


def test_views_share_memory():
    x = torch.zeros(4, 4, device="mps")
    x[1:3].t()[2] = 5
    x.view(-1)[0] += 1
    torch.view_as_real(x.view(2, 8).view(torch.complex64))[1, 3, 1] = 9
    assert x.cpu().tolist() == [[1, 0, 0, 0], [0, 0, 5, 0], [0, 0, 5, 0], [0, 0, 0, 9]]
    assert x[1:].data_ptr() - x.data_ptr() == 16
    assert x.untyped_storage().data_ptr() == x[2:].untyped_storage().data_ptr()


def test_conjugate_and_negative_views_are_resolved():
    x = sample((4,), torch.complex64)
    assert_close(x.to("mps").conj().cpu(), x.conj())
    assert_close(x.to("mps").conj().imag.cpu(), x.conj().imag)


def test_resizing_keeps_the_front():
    x = torch.arange(4.0, device="mps")
    x.resize_(2, 3)
    assert x.flatten()[:4].tolist() == [0, 1, 2, 3]
    y = torch.empty(0, device="mps").set_(x)
    y[0, 0] = 9
    assert x[0, 0].item() == 9
    assert torch.empty(2, device="mps").set_().numel() == 0


@pytest.mark.parametrize("count", [1000, (3 << 20) + 1], ids=["small", "mapped"])
def test_unwritten_memory_is_never_an_earlier_result(count):
    for _ in range(3):
        x = torch.empty(count, device="mps")
        assert x.isnan().all()
        x.fill_(1)
        assert (x == 1).all()


def test_memory_that_nobody_touches_is_none_of_the_hosts():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    x = torch.empty(1 << 28, device="mps")
    assert resident() - before < 1 << 26
    assert x[-1].isnan()


# Operators ----------------------------------------------------------------------------------------

OPERATORS = {
    "arithmetic": lambda x, i: (x * 2 + 1) / 3 - x.abs().sqrt(),
    "scalar_on_cpu": lambda x, i: x * torch.tensor(2.0),
    "in_place": lambda x, i: x.clone().add_(1).mul_(x).clamp_(-1, 1),
    "matmul": lambda x, i: x @ x.t(),
    "bmm": lambda x, i: torch.bmm(x.view(2, 3, 8), x.view(2, 8, 3)),
    "einsum": lambda x, i: torch.einsum("ij,kj->ik", x, x),
    "softmax": lambda x, i: x.softmax(-1),
    "reductions": lambda x, i: torch.stack([x.sum(), x.mean(), x.std(), x.amax(), x.norm()]),
    "sort": lambda x, i: x.sort(dim=1),
    "topk": lambda x, i: x.topk(3),
    "index": lambda x, i: x[i, 2:],
    "index_with_cpu_indices": lambda x, i: x[i.cpu()],
    "index_with_mask": lambda x, i: x[x > 0],
    "index_put": lambda x, i: x.clone().index_put_((i,), torch.ones((), device=x.device), accumulate=True),
    "assign": lambda x, i: _assigned(x.clone(), i),
    "gather": lambda x, i: x.gather(1, (x > 0).long()),
    "scatter": lambda x, i: torch.zeros_like(x).scatter_add_(1, (x > 0).long(), x),
    "where": lambda x, i: torch.where(x > 0, x, torch.zeros((), device=x.device)),
    "nonzero": lambda x, i: (x > 0).nonzero(),
    "unique": lambda x, i: (x > 0).unique(return_counts=True),
    "cat": lambda x, i: torch.cat([x, x[1:]], 0),
    "split": lambda x, i: x.split(5, 1),
    "cumsum": lambda x, i: x.cumsum(1),
    "flip_roll": lambda x, i: x.flip(0).roll(2, 1),
    "pad": lambda x, i: F.pad(x, (1, 2), value=3.0),
    "interpolate": lambda x, i: F.interpolate(x.view(1, 1, 6, 8), scale_factor=2.0),
    "fft": lambda x, i: torch.fft.rfft(x),
    "linalg": lambda x, i: torch.linalg.svdvals(x),
    "foreach": lambda x, i: torch._foreach_add([x, x * 2], 1.0),
    "out": lambda x, i: torch.add(x, 1, out=torch.empty(0, device=x.device)),
    "out_strided": lambda x, i: torch.mul(x, 2, out=torch.empty(8, 6, device=x.device).t()),
    "equal": lambda x, i: torch.tensor([torch.equal(x, x), torch.equal(x, x + 1)]),
    "item": lambda x, i: torch.tensor([x[1, 2].item(), float(x.max()), bool((x > 0).any())]),
    "tolist": lambda x, i: torch.tensor(x.tolist()),
    "one_hot": lambda x, i: F.one_hot(i, 7),
    "bucketize": lambda x, i: torch.bucketize(x, torch.linspace(-3, 3, 7, device=x.device)),
    "layer_norm": lambda x, i: F.layer_norm(x, (8,)),
    "rms_norm": lambda x, i: F.rms_norm(x, (8,)),
    "cross_entropy": lambda x, i: F.cross_entropy(x[:3], i),
    "cdist": lambda x, i: torch.cdist(x, x),
}


def _assigned(x, i):
    x[i] = x[:3] * 2
    x[:, ::2] = 1
    x[x < 0] = 0
    return x


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_matches_cpu(name):
    x, i = sample((6, 8), torch.float32), torch.tensor([4, 0, 2])
    expected = OPERATORS[name](x, i)
    made = OPERATORS[name](x.to("mps"), i.to("mps"))
    for ours, theirs in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (made, expected)), strict=True):
        assert ours.device.type == ("cpu" if name in ("equal", "item", "tolist") else "mps")
        assert_close(ours.cpu(), theirs)


def test_operator_refuses_mixed_devices():
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.mm(torch.ones(2, 2, device="mps"), torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, 2, device="mps") + torch.ones(2, 2)


def test_operator_of_another_library_needs_its_own_kernel():
    @torch.library.custom_op("mpsk_test::twice", mutates_args=(), device_types="cpu")
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(NotImplementedError, match="mpsk_test::twice has no kernel for device mps"):
        twice(torch.ones(2, device="mps"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
        lambda: torch.zeros(3, dtype=torch.float64).to("mps"),
        lambda: torch.zeros(3, device="mps").double(),
        lambda: torch.arange(3, device="mps", dtype=torch.float64),
    ],
)
def test_float64_is_refused(make):
    with pytest.raises(TypeError, match="float64"):
        make()


def test_numpy_is_refused():
    with pytest.raises(TypeError, match="can't convert mps:0 device type tensor to numpy"):
        torch.zeros(3, device="mps").numpy()


def test_other_devices_and_layouts_are_refused():
    for make in (torch.zeros, torch.empty, lambda n, device: torch.empty_strided((n,), (2,), device=device)):
        with pytest.raises(RuntimeError, match="mps: there is one device, mps:0, got mps:1"):
            make(3, device="mps:1")
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.eye(3, device="mps").to_sparse()


# Modules, autograd, optimisers --------------------------------------------------------------------

MODULES = {
    "linear": (lambda: nn.Linear(8, 4), (3, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 4, 4)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 4, 4)),
    "batch_norm": (lambda: nn.BatchNorm2d(4), (2, 4, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm(8), (3, 8)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "rms_norm": (lambda: nn.RMSNorm(8), (3, 8)),
    "pooling": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (1, 2, 4, 4)),
    "activations": (lambda: nn.Sequential(nn.GELU(), nn.SiLU(), nn.Softplus(), nn.PReLU()), (3, 8)),
    "lstm": (lambda: First(nn.LSTM(8, 4, num_layers=2, bidirectional=True)), (3, 2, 8)),
    "gru": (lambda: First(nn.GRU(8, 4)), (3, 2, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
}


class First(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


@pytest.mark.parametrize("name", MODULES)
def test_module_matches_cpu(name):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    here = make()
    there = copy.deepcopy(here).to("mps")
    x = sample(shape, torch.float32)
    results = []
    for module, device in ((here, "cpu"), (there, "mps")):
        leaf = x.clone().to(device).requires_grad_()
        output = module(leaf)
        (output * output.detach().cos()).sum().backward()
        with torch.no_grad():
            assert module.eval()(leaf).device.type == device
        results.append([output, leaf.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert ours.is_mps
        assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention_matches_cpu(mask, grad):
    q, k, v = (sample((2, 4, 6, 8), torch.float32) * s for s in (1, 0.5, 2))
    extra = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": torch.ones(6, 6).tril().bool()},
        "float": {"attn_mask": torch.randn(6, 6)},
    }[mask]
    expected = F.scaled_dot_product_attention(q, k, v, **extra)
    extra = {key: value.to("mps") if isinstance(value, torch.Tensor) else value for key, value in extra.items()}
    there = [t.to("mps").requires_grad_(grad) for t in (q, k, v)]
    made = F.scaled_dot_product_attention(*there, **extra)
    assert made.requires_grad == grad
    assert_close(made.detach().cpu(), expected)
    if grad:
        made.sum().backward()
        assert all(t.grad.is_mps for t in there)


def test_grouped_attention_matches_cpu():
    q, kv = sample((1, 4, 3, 8), torch.float32), sample((1, 2, 3, 8), torch.float32)
    expected = F.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)
    kv = kv.to("mps")
    assert_close(F.scaled_dot_product_attention(q.to("mps"), kv, kv, enable_gqa=True).cpu(), expected)


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, 0.01),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
        lambda p: torch.optim.RMSprop(p, 0.01),
    ],
)
def test_training_matches_cpu(optimiser):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    there = copy.deepcopy(here).to("mps")
    x, y = sample((32, 8), torch.float32), sample((32, 1), torch.float32)
    for module, device in ((here, "cpu"), (there, "mps")):
        steps = optimiser(module.parameters())
        for _ in range(3):
            steps.zero_grad()
            F.mse_loss(module(x.to(device)), y.to(device)).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            steps.step()
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert_close(ours.detach().cpu(), theirs.detach(), atol=1e-5, rtol=1e-4)


def test_autocast_computes_in_half():
    x = torch.randn(4, 4, device="mps")
    with torch.autocast("mps", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert F.layer_norm(x, (4,)).dtype == torch.float32


# Random numbers -----------------------------------------------------------------------------------

RANDOM = {
    "randn": lambda: torch.randn(50, device="mps"),
    "rand": lambda: torch.rand(50, device="mps"),
    "randint": lambda: torch.randint(1000, (50,), device="mps"),
    "randperm": lambda: torch.randperm(50, device="mps"),
    "randn_like": lambda: torch.randn_like(torch.zeros(50, device="mps")),
    "normal_": lambda: torch.zeros(50, device="mps").normal_(),
    "bernoulli": lambda: torch.full((50,), 0.5, device="mps").bernoulli(),
    "multinomial": lambda: torch.ones(50, device="mps").multinomial(20),
    "dropout": lambda: F.dropout(torch.ones(50, device="mps")),
    "native_dropout": lambda: torch.native_dropout(torch.ones(50, device="mps"), 0.5, True)[0],
    "init": lambda: nn.init.xavier_normal_(torch.empty(5, 10, device="mps")),
}


@pytest.mark.parametrize("seed", [torch.manual_seed, torch.mps.manual_seed], ids=["torch", "torch.mps"])
@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_follow_the_seed(name, seed):
    draws = []
    for value in (1, 1, 2):
        seed(value)
        draws.append(RANDOM[name]())
    first, again, other = (draw.cpu() for draw in draws)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_generators_are_independent():
    one, two = (torch.Generator(device="mps").manual_seed(5) for _ in range(2))
    assert one.device.type == "mps"
    first = torch.randn(8, device="mps", generator=one)
    torch.randn(8, device="mps")
    assert torch.equal(first, torch.randn(8, device="mps", generator=two))
    state = one.get_state()
    ahead = torch.rand(4, device="mps", generator=one)
    one.set_state(state)
    assert torch.equal(ahead, torch.rand(4, device="mps", generator=one))
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(8, device="mps", generator=torch.Generator())


def test_random_state_of_the_device_can_be_kept():
    state = torch.mps.get_rng_state()
    first = torch.rand(4, device="mps")
    torch.mps.set_rng_state(state)
    assert torch.equal(first, torch.rand(4, device="mps"))


def test_seeding_reaches_the_device_without_enable():
    code = """
import torch, mpskernels.simulator
draws = []
for _ in range(2):
    torch.manual_seed(3)
    draws.append(torch.randn(4, device="mps"))
print(torch.equal(*draws), torch.backends.mps.is_available(), torch.backends.mps.is_built())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True", "True", "False"]


# Saving and printing ------------------------------------------------------------------------------


def test_printing_shows_values_and_device():
    assert repr(torch.arange(3, device="mps")) == "tensor([0, 1, 2], device='mps:0')"
    assert "grad_fn" in repr(torch.ones(1, device="mps", requires_grad=True) * 2)
    assert str(torch.zeros(1000, 1000, device="mps")).count("...") > 0


@pytest.mark.parametrize("map_location", [None, "cpu", "mps"])
def test_save_and_load(map_location):
    module = nn.Linear(3, 2).to("mps")
    file = io.BytesIO()
    torch.save({"state": module.state_dict(), "view": torch.arange(6.0, device="mps")[2:]}, file)
    file.seek(0)
    loaded = torch.load(file, map_location=map_location)
    assert loaded["state"]["weight"].device.type == (map_location or "mps")
    assert_close(loaded["state"]["weight"].cpu(), module.weight.detach().cpu())
    assert loaded["view"].tolist() == [2, 3, 4, 5]


def test_load_of_a_cpu_file_to_mps():
    file = io.BytesIO()
    torch.save(torch.arange(3), file)
    file.seek(0)
    assert torch.load(file, map_location="mps").is_mps


def test_pickle_and_deepcopy():
    x = torch.arange(6.0, device="mps").view(2, 3).t()
    for twin in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert twin.is_mps
        assert twin.stride() == x.stride()
        assert torch.equal(twin, x)
        assert twin.data_ptr() != x.data_ptr()


def test_storage_can_be_made_on_the_device():
    storage = torch.UntypedStorage(16, device="mps")
    assert storage.device.type == "mps"
    assert storage.nbytes() == 16
    assert torch.UntypedStorage([1, 2, 3], device="mps").cpu().tolist() == [1, 2, 3]
    assert torch.UntypedStorage(4).device.type == "cpu"


# Order and waiting --------------------------------------------------------------------------------


def host_view(x):
    """What the processor sees in x's memory now."""
    return torch.empty(0).set_(torch.mps._host_alias_storage(x.untyped_storage()), 0, x.shape)


def test_kernels_run_later(shaders):
    x = torch.zeros(4, device="mps")
    shaders.add(x, 1.0)
    assert host_view(x).tolist() == [0, 0, 0, 0]
    torch.mps.synchronize()
    assert host_view(x).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.cpu().tolist(),
        lambda x: [x[i].item() for i in range(4)],
        lambda x: torch.zeros(4).copy_(x).tolist(),
        lambda x: (x * 1).tolist(),
        lambda x: x.clone().tolist(),
        lambda x: pickle.loads(pickle.dumps(x)).tolist(),
        lambda x: torch.add(x, 0, out=torch.zeros(4, device="mps")).tolist(),
    ],
)
def test_looking_at_a_tensor_waits(shaders, look):
    x = torch.zeros(4, device="mps")
    for _ in range(3):
        shaders.add(x, 1.0)
    assert look(x) == [3, 3, 3, 3]


def test_writing_a_tensor_waits_for_its_readers(shaders):
    x, y = torch.ones(4, device="mps"), torch.zeros(4, device="mps")
    shaders.copy(x, y)
    x.fill_(7)
    assert y.tolist() == [1, 1, 1, 1]


def test_freed_tensors_live_as_long_as_commands_use_them(shaders):
    results = []
    for i in range(50):
        x, y = torch.full((1000,), float(i), device="mps"), torch.empty(1000, device="mps")
        shaders.copy(x, y)
        del x
        results.append(y)
    assert all((y == i).all() for i, y in enumerate(results))


def test_fault_of_a_kernel_is_raised_once(shaders):
    x = torch.zeros(64, device="mps")
    shaders.faulty(x)
    with pytest.raises(RuntimeError, match=r"kernel faulty: .*inactive lane"):
        torch.mps.synchronize()
    torch.mps.synchronize()
    shaders.add(x, 2.0)
    assert x.sum().item() == 128


def test_refused_dispatch_leaves_the_stream_working(shaders):
    x = torch.zeros(4, device="mps")
    with pytest.raises(RuntimeError, match=r"argument value .* is not bound"):
        shaders.add(x)
    shaders.add(x, 1.0)
    assert x.tolist() == [1, 1, 1, 1]


def test_events_mark_places_in_the_work(shaders):
    start, end = torch.mps.Event(enable_timing=True), torch.mps.Event(enable_timing=True)
    x = torch.zeros(1000, device="mps")
    start.record()
    shaders.add(x, 1.0)
    end.record()
    end.synchronize()
    assert end.query()
    assert host_view(x)[0] == 1
    assert start.elapsed_time(end) >= 0
    event = torch.Event(device="mps", enable_timing=True)
    event.record()
    event.synchronize()


def test_threads_share_the_device(shaders):
    failures = []

    def work(number):
        x = torch.zeros(100, device="mps")
        for _ in range(40):
            shaders.add(x, float(number))
        if not torch.equal(x.cpu(), torch.full((100,), 40.0 * number)):
            failures.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_processes_at_once():
    code = """
import torch, mpskernels.simulator as simulator
lib = simulator.compile_shader("kernel void add(device float* y, uint i [[thread_position_in_grid]]) { y[i] += 1; }")
x = torch.zeros(10000, device="mps")
for _ in range(200):
    lib.add(x)
print(x.sum().item())
"""
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["2000000.0", "2000000.0"]


def test_fork_after_use_is_refused_in_the_child(shaders):
    shaders.add(torch.zeros(4, device="mps"), 1.0)
    torch.mps.synchronize()
    x = torch.zeros(4, device="mps")
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(x.cpu())
        except RuntimeError as error:
            text = str(error)
        os.write(into, f"{torch.mps._is_in_bad_fork()} {text}".encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert text.startswith("True the mps device was used before this process forked")
    assert x.tolist() == [0, 0, 0, 0]


def test_data_loader_workers_feed_the_device(shaders):
    shaders.add(torch.zeros(4, device="mps"), 1.0)
    torch.mps.synchronize()
    loader = torch.utils.data.DataLoader(torch.arange(8.0), batch_size=4, num_workers=2)
    assert sum(batch.to("mps").sum().item() for batch in loader) == 28


# Memory -------------------------------------------------------------------------------------------


def test_memory_is_counted():
    before = torch.mps.current_allocated_memory()
    x = torch.zeros(1 << 20, device="mps")
    assert torch.mps.current_allocated_memory() - before == 4 << 20
    assert torch.mps.driver_allocated_memory() >= torch.mps.current_allocated_memory()
    assert torch.accelerator.memory_allocated() == torch.mps.current_allocated_memory()
    del x
    torch.mps.empty_cache()
    assert torch.mps.current_allocated_memory() == before
    assert torch.mps.recommended_max_memory() == simulator.chip().recommended_max_working_set_size


def test_huge_tensors_are_refused():
    with pytest.raises(RuntimeError, match=r"invalid buffer size: .* GiB"):
        torch.empty(1 << 40, device="mps")
    with pytest.raises(RuntimeError):
        torch.empty(1 << 62, device="mps")


def test_memory_fraction_limits_the_process():
    torch.mps.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="mps: out of memory"):
            torch.empty(1 << 20, device="mps")
    finally:
        torch.mps.set_per_process_memory_fraction(1.7)


# What torch says of the device; tracing -----------------------------------------------------------


def test_enable_makes_torch_answer():
    simulator.enable()
    assert torch.backends.mps.is_available()
    assert torch.backends.mps.is_built()
    assert torch.backends.mps.get_name() == simulator.chip().name
    assert torch.backends.mps.get_core_count() == simulator.chip().gpu_cores
    assert torch.backends.mps.is_macos_or_newer(14, 0)
    assert not torch.backends.mps.is_macos_or_newer(26, 0)
    assert torch.mps.device_count() == 1
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("mps")
    torch.accelerator.synchronize()


def test_device_is_there_however_late_it_is_imported():
    code = """
import torch
assert not torch.backends.mps.is_available() and torch.accelerator.current_accelerator() is None
from mpskernels import simulator
simulator.enable()
print(torch.backends.mps.is_available(), torch.accelerator.current_accelerator())
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True", "mps"]


def import_with(**environment):
    """The threads that the device has, or the error's last line."""
    run = subprocess.run(
        [sys.executable, "-c", "import mpskernels.simulator as simulator; print(simulator.chip().threads)"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return (run.stderr if run.returncode else run.stdout).splitlines()[-1]


def test_unknown_chip_is_refused():
    last = import_with(MPSK_SIMULATE="m99")
    assert last.startswith("RuntimeError: MPSK_SIMULATE=m99 names no chip; allowed: m1, m1pro,")


@pytest.mark.parametrize("threads", ["abc", "0", "-1", "4x", "1.5"])
def test_number_of_threads_is_checked(threads):
    assert import_with(MPSK_THREADS=threads) == f"RuntimeError: MPSK_THREADS={threads} is no positive number"


@pytest.mark.parametrize(("threads", "taken"), [("3", 3), ("16", 16), ("99999999999999999999999", 16)])
def test_number_of_threads_is_taken(threads, taken):
    assert import_with(MPSK_THREADS=threads) == str(taken)


def test_fake_tensors_know_the_device():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(3, 4, device="mps")
        assert (x @ x.t()).device == torch.device("mps:0")
        q = torch.empty(1, 2, 3, 4, device="mps")
        assert F.scaled_dot_product_attention(q, q, q).shape == q.shape


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compile_traces_for_the_device(requires_grad):
    def f(x, q):
        return F.gelu(x @ x.t()).sum() + F.scaled_dot_product_attention(q, q, q).sum()

    x = torch.randn(4, 8, device="mps", requires_grad=requires_grad)
    q = torch.randn(1, 2, 4, 8, device="mps", requires_grad=requires_grad)
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, q), f(x, q))
    if requires_grad:
        compiled(x, q).backward()
        assert x.grad.is_mps
