"""The dense decoder against a small random Llama of transformers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mm1.model.decoder import Decoder

SHAPE = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}


def from_llama(state, layers):
    """Our names for Llama's tensors; gate and up become one."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if "lm_head.weight" in state:
        ours["head.weight"] = state["lm_head.weight"]
    for i in range(layers):
        theirs, mine = f"model.layers.{i}.", f"layers.{i}."
        for name in "qkvo":
            ours[f"{mine}attention.{name}.weight"] = state[f"{theirs}self_attn.{name}_proj.weight"]
        ours[f"{mine}attention_norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        ours[f"{mine}ffn_norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"]
        both = [state[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        ours[f"{mine}ffn.gate_up.weight"] = torch.cat(both)
        ours[f"{mine}ffn.down.weight"] = state[f"{theirs}mlp.down_proj.weight"]
    return ours


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_equal_llamas(kv_heads, tied):
    torch.manual_seed(0)
    settings = LlamaConfig(
        **SHAPE,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    )
    llama = LlamaForCausalLM(settings)
    decoder = Decoder(
        96, width=48, layers=3, heads=6, kv_heads=kv_heads, ffn_width=80, tied=tied, rope_base=50000.0, norm_eps=1e-5
    )
    state = llama.state_dict()
    if tied:
        del state["lm_head.weight"]
    decoder.load_state_dict(from_llama(state, 3))
    tokens = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    expected = llama(tokens).logits
    positions = torch.arange(17).expand(2, 17)
    hidden = decoder(decoder.embedding(tokens), torch.ones_like(tokens), positions).hidden_BTD
    found = decoder.logits(hidden)
    assert expected.abs().max() > 1
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    (expected.square().mean() + 0).backward()
    found.square().mean().backward()
    gradients = from_llama({name: parameter.grad for name, parameter in llama.named_parameters()}, 3)
    for name, parameter in decoder.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4), name
