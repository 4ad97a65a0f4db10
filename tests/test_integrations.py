"""nn modules, the transformers integration and the demo that is built on them."""

import copy

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import mpskernels
from mpskernels import _C, demo, nn
from mpskernels.integrations.transformers import use_mpskernels


def config(kind: type) -> object:
    return kind(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.125,
        pad_token_id=0,
    )


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(config(LlamaConfig)).eval()


@pytest.fixture
def ours(llama):
    return use_mpskernels(copy.deepcopy(llama)).to("mps")


@pytest.fixture
def ids():
    return torch.randint(1, 64, (2, 37), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_llama_matches_the_cpu_and_every_layer_is_ours(llama, ours, ids):
    _C.reset_launches()
    logits = ours(ids.to("mps")).logits
    launches = {op: sum(kernels.values()) for op, kernels in _C.launches().items()}
    assert launches == {"attention": 1, "linear": 8, "rms_norm": 3, "rope": 1, "swiglu": 1}
    torch.testing.assert_close(logits.cpu(), llama(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_llama_generates_the_same_tokens(llama, ours, ids):
    prompt = ids[:1, :5]
    expected = llama.generate(prompt, max_new_tokens=6, do_sample=False)
    assert ours.generate(prompt.to("mps"), max_new_tokens=6, do_sample=False).tolist() == expected.tolist()


def test_parameters_keep_their_names_and_values(llama, ours):
    assert ours.state_dict().keys() == llama.state_dict().keys()
    copy.deepcopy(llama).load_state_dict({name: value.cpu() for name, value in ours.state_dict().items()})


@torch.no_grad()
def test_padding_is_refused(ours, ids):
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(NotImplementedError, match=r"a mask of shape \(2, 1, 37, 37\) is needed here"):
        ours(ids.to("mps"), attention_mask=mask.to("mps"))


@torch.no_grad()
def test_gemma_matches_the_cpu(ids):
    torch.manual_seed(0)
    gemma = GemmaForCausalLM(config(GemmaConfig)).eval()
    for name, parameter in gemma.named_parameters():
        if "norm" in name:
            parameter.normal_(std=0.5)
    model = use_mpskernels(copy.deepcopy(gemma)).to("mps")
    _C.reset_launches()
    logits = model(ids.to("mps")).logits
    assert sum(_C.launches()["rms_norm"].values()) == 3
    torch.testing.assert_close(logits.cpu(), gemma(ids).logits, atol=1e-4, rtol=1e-4)


NORMED = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM)}


@pytest.fixture(params=NORMED.values(), ids=NORMED)
def normed(request):
    """A model that norms the heads of q and k, and its copy on our kernels."""
    kind, make = request.param
    torch.manual_seed(0)
    model = make(config(kind)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(0.0 if kind is Gemma3TextConfig else 1.0, 0.5)
    # Deep copies of a model on our kernels have weights of their own.
    first = use_mpskernels(copy.deepcopy(model))
    second = copy.deepcopy(first).to("mps")
    for parameter in first.parameters():
        parameter.data.zero_()
    return model, second


@torch.no_grad()
def test_norms_of_heads_run_with_the_rotation(normed, ids):
    model, ours = normed
    assert ours.state_dict().keys() == model.state_dict().keys()
    _C.reset_launches()
    logits = ours(ids.to("mps")).logits
    launches = {op: sum(kernels.values()) for op, kernels in _C.launches().items()}
    assert launches["qk_norm_rope"] == 1
    assert launches["rms_norm"] == (5 if isinstance(model, Gemma3ForCausalLM) else 3)
    assert "rope" not in launches
    torch.testing.assert_close(logits.cpu(), model(ids).logits, atol=1e-4, rtol=1e-4)
    prompt = ids[:1, :5]
    expected = model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert ours.generate(prompt.to("mps"), max_new_tokens=4, do_sample=False).tolist() == expected.tolist()


def test_unlike_norms_of_heads_run_alone(ids):
    model = Qwen3ForCausalLM(config(Qwen3Config)).eval()
    model.model.layers[0].self_attn.q_norm.variance_epsilon = 0.1
    ours = use_mpskernels(copy.deepcopy(model)).to("mps")
    with torch.no_grad():
        _C.reset_launches()
        logits = ours(ids.to("mps")).logits
        assert {"rope", "rms_norm"} <= set(_C.launches())
        assert "qk_norm_rope" not in _C.launches()
        torch.testing.assert_close(logits.cpu(), model(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_block_compiles_into_one_graph_and_copies_no_heads(normed, ids):
    _, ours = normed
    block, inner = ours.model.layers[0], ours.model
    hidden = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0)).to("mps")
    kind = getattr(block.self_attn, "layer_type", None)
    rotary = (hidden, torch.arange(37, device="mps")[None], *([kind] if isinstance(ours, Gemma3ForCausalLM) else []))
    arguments = {"position_embeddings": inner.rotary_emb(*rotary), "attention_mask": None}
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        expected = block(hidden, **arguments)
    # One: heads of the attention's result go third, where the projection behind it wants them.
    assert sum(event.name == "aten::clone" for event in profile.events()) == 1
    torch.testing.assert_close(compiled(hidden, **arguments).cpu(), expected.cpu(), atol=1e-6, rtol=1e-6)


def test_other_norms_are_refused_and_nothing_changes():
    model = OlmoForCausalLM(config(OlmoConfig))
    with pytest.raises(NotImplementedError, match=r"no kernel for model\.layers\.0\.input_layernorm, a OlmoLayerNorm"):
        use_mpskernels(model)
    assert not any(isinstance(module, nn.Linear | nn.RMSNorm) for module in model.modules())


@pytest.mark.parametrize(
    ("ours", "stock", "arguments", "kwargs"),
    [
        (nn.RMSNorm, torch.nn.RMSNorm, (48,), {}),
        (nn.RMSNorm, torch.nn.RMSNorm, (48,), {"eps": 1e-3, "elementwise_affine": False}),
        (nn.LayerNorm, torch.nn.LayerNorm, (48,), {}),
        (nn.LayerNorm, torch.nn.LayerNorm, (48,), {"eps": 1e-3, "bias": False}),
        (nn.GroupNorm, torch.nn.GroupNorm, (4, 48), {}),
        (nn.GroupNorm, torch.nn.GroupNorm, (4, 48), {"eps": 1e-3, "affine": False}),
        (nn.Linear, torch.nn.Linear, (48, 20), {}),
        (nn.Linear, torch.nn.Linear, (48, 20), {"bias": False}),
    ],
)
@torch.no_grad()
def test_modules_match_torch(ours, stock, arguments, kwargs):
    torch.manual_seed(0)
    theirs = stock(*arguments, **kwargs)
    for parameter in theirs.parameters():
        parameter.normal_()
    mine = ours(*arguments, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    for shape in [(5, 48), (2, 48, 3)] if ours is nn.GroupNorm else [(48,), (5, 48), (2, 3, 48)]:
        x = torch.randn(shape)
        torch.testing.assert_close(mine.to("mps")(x.to("mps")).cpu(), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("stock", "offset"), [(LlamaRMSNorm, 0.0), (Qwen3RMSNorm, 0.0), (GemmaRMSNorm, 1.0), (Gemma3RMSNorm, 1.0)]
)
@torch.no_grad()
def test_norms_match_those_of_transformers(stock, offset):
    theirs, mine = stock(48, eps=1e-3), nn.RMSNorm(48, eps=1e-3, offset=offset)
    theirs.weight.normal_()
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 3, 48)
    torch.testing.assert_close(mine.to("mps")(x.to("mps")).cpu(), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 7, 3), (2, 7, 3, 2)], ids=str)
@pytest.mark.parametrize("options", [{}, {"ignore_index": 2, "label_smoothing": 0.1, "reduction": "none"}], ids=str)
def test_cross_entropy_loss_matches_torch(shape, options):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(max(1, x.numel() // 7)).view(shape[:1] + shape[2:] if len(shape) > 1 else ()) % 7
    leaves = x.clone().requires_grad_(), x.to("mps").requires_grad_()
    theirs = torch.nn.CrossEntropyLoss(**options)(leaves[0], targets)
    mine = nn.CrossEntropyLoss(**options)(leaves[1], targets.to("mps"))
    torch.testing.assert_close(mine.cpu(), theirs, atol=1e-5, rtol=1e-5)
    theirs.sum().backward()
    mine.sum().backward()
    torch.testing.assert_close(leaves[1].grad.cpu(), leaves[0].grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}], ids=str)
def test_linear_cross_entropy_loss_matches_torch(options):
    torch.manual_seed(0)
    theirs, mine = torch.nn.LinearCrossEntropyLoss(6, 9, **options), nn.LinearCrossEntropyLoss(6, 9, chunk=2, **options)
    mine.load_state_dict(theirs.state_dict())
    x, targets = torch.randn(5, 6), torch.tensor([0, 2, 8, 1, 2])
    losses = theirs(x, targets), mine.to("mps")(x.to("mps"), targets.to("mps"))
    torch.testing.assert_close(losses[1].cpu(), losses[0], atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(mine.linear.weight.grad.cpu(), theirs.linear.weight.grad, atol=1e-5, rtol=1e-5)


def test_losses_refuse_what_they_lack():
    for make, name in (
        (lambda: nn.CrossEntropyLoss(torch.ones(3)), "CrossEntropyLoss: weight"),
        (lambda: nn.LinearCrossEntropyLoss(4, 3, weight=torch.ones(3)), "LinearCrossEntropyLoss: weight"),
        (lambda: nn.LinearCrossEntropyLoss(4, 3, bias=True), "LinearCrossEntropyLoss: bias"),
        (lambda: nn.LinearCrossEntropyLoss(4, 3, out_features=(2,)), "LinearCrossEntropyLoss: out_features"),
    ):
        with pytest.raises(NotImplementedError, match=f"mpskernels.nn.{name} is not supported"):
            make()


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_norm_over_two_dimensions_is_refused(norm):
    text = rf"mpskernels\.nn\.{norm.__name__}: expected normalized_shape of one dimension, got \(4, 8\)"
    with pytest.raises(NotImplementedError, match=text):
        norm((4, 8))


@pytest.mark.parametrize("norm", [nn.RMSNorm(48), nn.LayerNorm(48), nn.GroupNorm(4, 48, silu=True)])
def test_norm_modules_train(norm):
    theirs = {nn.RMSNorm: torch.nn.RMSNorm, nn.LayerNorm: torch.nn.LayerNorm, nn.GroupNorm: torch.nn.GroupNorm}
    stock = theirs[type(norm)](*((4, 48) if type(norm) is nn.GroupNorm else (48,)))
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    y = stock(x)
    (torch.nn.functional.silu(y) if type(norm) is nn.GroupNorm else y).square().sum().backward()
    norm.to("mps")(x.to("mps")).square().sum().backward()
    for mine, other in zip(norm.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), other.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.SwiGLU(), torch.nn.functional.silu),
        (nn.GeGLU(), torch.nn.functional.gelu),
        (nn.GeGLU("tanh"), lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        (nn.ReGLU(), torch.relu),
    ],
)
def test_gated_modules_match_torch(module, activation):
    gate, up = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = activation(gate) * up
    for out in (module(gate.to("mps"), up.to("mps")), module(torch.cat([gate, up], -1).to("mps"))):
        torch.testing.assert_close(out.cpu(), expected, atol=1e-6, rtol=1e-5)


def test_demo_passes(capsys):
    assert demo.run(None, 48) == 0
    out = capsys.readouterr().out
    assert "no op fell back" in out
    assert "times are not GPU times" in out or not mpskernels.info().simulated


def test_demo_notices_a_fallback(capsys, monkeypatch):
    monkeypatch.setattr(mpskernels, "linear", torch.nn.functional.linear)
    assert demo.run(None, 16) == 1
    assert "stock aten::mm ran on the device" in capsys.readouterr().err


def test_demo_notices_a_wrong_result(capsys, monkeypatch):
    right = mpskernels.rms_norm
    monkeypatch.setattr(mpskernels, "rms_norm", lambda x, weight, eps, **kw: right(x, weight, eps + 0.01, **kw))
    assert demo.run(None, 16) == 1
    assert "fp32 logits: error" in capsys.readouterr().err
