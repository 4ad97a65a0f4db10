"""Hugging Face transformers models on our kernels: `use_mpskernels(model)`."""

import types

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

import mpskernels
from mpskernels import nn

ATTENTION = "mpskernels"
ROPE = "apply_rotary_pos_emb"
# Attention whose heads of q and k go from q_norm and k_norm to the rotation without a change. Qwen's other models and
# many of other makers have the same code.
NORMED = (modeling_qwen3.Qwen3Attention.forward, modeling_gemma3.Gemma3Attention.forward)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. It takes [batch, heads, length, head_dim] and returns heads third."""
    if attention_mask is not None:
        raise NotImplementedError(
            f"mpskernels attention: a mask of shape {tuple(attention_mask.shape)} is needed here, and only causal or "
            "full attention is supported; use inputs without padding, packing, sliding windows or chunked prefill"
        )
    refused = {"dropout": dropout, **{name: kwargs.get(name) for name in ("softcap", "s_aux", "position_bias")}}
    for name, given in refused.items():
        if given is not None and not (isinstance(given, float) and given == 0.0):
            raise NotImplementedError(f"mpskernels attention: {name} is not supported")
    length = query.size(2)
    # One query is the last one, and sees all keys. Without a mask, several start at the first key: what a static cache
    # holds beyond them is empty.
    causal = length > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if causal and key.size(2) > length:
        key, value = key[:, :, :length], value[:, :, :length]
    out = mpskernels.attention(query, key, value, is_causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention_forward)
# No mask where causal or full attention says it all, as with torch's own attention.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _norm(module: torch.nn.Module) -> torch.nn.Module | None:
    """Our module in the place of a norm that we have a kernel for."""
    kind = type(module).__name__
    if type(module) is torch.nn.LayerNorm:
        new = nn.LayerNorm(module.normalized_shape, module.eps, module.elementwise_affine, device="meta")
        new.bias = module.bias
    elif kind in ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"):  # x / rms(x) * (1 + weight)
        new = nn.RMSNorm(module.weight.size(0), eps=module.eps, offset=1.0, device="meta")
    elif kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):  # x / rms(x) * weight
        new = nn.RMSNorm(module.weight.size(0), eps=module.variance_epsilon, device="meta")
    else:
        return None
    new.weight = module.weight
    return new


def _rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' apply_rotary_pos_emb, of heads before positions."""
    if unsqueeze_dim != 1:
        raise NotImplementedError(f"mpskernels rope: expected unsqueeze_dim 1, got {unsqueeze_dim}")
    return mpskernels.rope(q, k, cos, sin)


def _is_same_code(function: object, other: types.FunctionType) -> bool:
    code, like = getattr(function, "__code__", None), other.__code__
    return code is not None and (code.co_code, code.co_names) == (like.co_code, like.co_names)


def _rotates_as_llama(module: torch.nn.Module) -> bool:
    """Whether its forward calls, by this name, the function that Llama's attention does."""
    forward = type(module).forward
    return ROPE in getattr(getattr(forward, "__code__", None), "co_names", ()) and _is_same_code(
        forward.__globals__.get(ROPE), modeling_llama.apply_rotary_pos_emb
    )


def _norms_heads(module: torch.nn.Module) -> bool:
    """Whether q_norm and k_norm norm the heads of q and k alike, as ours do, and a rotation is all that follows."""
    if not any(_is_same_code(type(module).forward, forward) for forward in NORMED):
        return False
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    return all(type(norm) is nn.RMSNorm for norm in norms) and len({(n.eps, n.offset) for n in norms}) == 1


def _normed_attention(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: object | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The forward of such a module, with both norms and the rotation in one kernel. Hooks of the norms do not run."""
    leading = hidden_states.shape[:-1]
    q, k, v = (
        project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    norm, weights = self.q_norm, (self.q_norm.weight, self.k_norm.weight)
    q, k = mpskernels.qk_norm_rope(q, k, *weights, norm.eps, *position_embeddings, weight_offset=norm.offset)
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention_forward)
    dropout = self.attention_dropout if self.training else 0.0
    out, weights = attend(
        self,
        q,
        k,
        v,
        attention_mask,
        dropout=dropout,
        scaling=self.scaling,
        sliding_window=self.sliding_window,
        **kwargs,
    )
    return self.o_proj(out.reshape(*leading, -1)), weights


def _put_on_rope(module: torch.nn.Module) -> None:
    """The forward of this module alone, with our function under that name."""
    if _norms_heads(module):
        module.forward = types.MethodType(_normed_attention, module)
        return
    old = type(module).forward
    new = types.FunctionType(
        old.__code__, {**old.__globals__, ROPE: _rope}, old.__name__, old.__defaults__, old.__closure__
    )
    new.__kwdefaults__ = old.__kwdefaults__
    module.forward = types.MethodType(new, module)


GATES = {"SiLUActivation": nn.SwiGLU, "GELUTanh": lambda: nn.GeGLU("tanh"), "GELUActivation": nn.GeGLU}


def _is_gated_mlp(module: torch.nn.Module) -> bool:
    """down_proj(act_fn(gate_proj(x)) * up_proj(x)), as in Llama, with an activation that we have."""
    children = dict(module.named_children())
    return (
        type(module).__name__.endswith("MLP")
        and children.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and type(children["act_fn"]).__name__ in GATES
    )


def use_mpskernels(model: PreTrainedModel) -> PreTrainedModel:
    """Puts the model's norms, linear layers, gated MLPs, rotary embeddings and attention on our kernels, in place.

    Returns the model. Norms of the heads of q and k, as in Qwen3 and Gemma 3, run in one kernel with the rotation.

    Parameters stay the same objects under the same names. A kind of norm that we have no kernel for is refused with
    NotImplementedError, before anything has changed. Call the model under `torch.no_grad()`.
    """
    replacements = {}
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            new = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            new.weight, new.bias = module.weight, module.bias
        elif _is_gated_mlp(module):
            gate = GATES[type(module.act_fn).__name__]()
            new = nn.GatedMLP(module.gate_proj, module.up_proj, module.down_proj, gate)
        elif "Norm" in type(module).__name__:
            new = _norm(module)
            if new is None:
                raise NotImplementedError(
                    f"mpskernels has no kernel for {name}, a {type(module).__name__}; it has RMSNorm as in Llama and "
                    "Gemma, and torch.nn.LayerNorm"
                )
        else:
            continue
        replacements[name] = new.train(module.training)
    model.set_attn_implementation(ATTENTION)
    for name, new in replacements.items():
        model.set_submodule(name, new)
    for module in model.modules():
        if _rotates_as_llama(module):
            _put_on_rope(module)
    return model
