"""The sparse decoder against a small random Mixtral of transformers."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from mm1.model.decoder import Decoder
from mm1.model.moe.layer import MoE
from mm1.model.moe.routing import Places

EXPERTS, TOP_K, LAYERS = 6, 2, 3


def from_mixtral(state):
    """Our names for Mixtral's tensors; transformers stacks experts and joins gate and up as we do."""
    ours = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for i in range(LAYERS):
        theirs, mine = f"model.layers.{i}.", f"layers.{i}."
        for name in "qkvo":
            ours[f"{mine}attention.{name}.weight"] = state[f"{theirs}self_attn.{name}_proj.weight"]
        ours[f"{mine}attention_norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        ours[f"{mine}ffn_norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"]
        ours[f"{mine}ffn.router.weight"] = state[f"{theirs}mlp.gate.weight"]
        ours[f"{mine}ffn.experts.gate_up"] = state[f"{theirs}mlp.experts.gate_up_proj"]
        ours[f"{mine}ffn.experts.down"] = state[f"{theirs}mlp.experts.down_proj"]
    return ours


def pair():
    torch.manual_seed(0)
    settings = MixtralConfig(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        sliding_window=None,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    mixtral = MixtralForCausalLM(settings)

    def moe(width, ffn_width):
        return MoE(width, ffn_width, experts=EXPERTS, top_k=TOP_K)

    decoder = Decoder(96, width=48, layers=LAYERS, heads=6, kv_heads=2, ffn_width=40, moe=moe, moe_every=1)
    decoder.load_state_dict(from_mixtral(mixtral.state_dict()))
    return mixtral, decoder


def test_logits_gradients_and_balance_equal_mixtrals():
    mixtral, decoder = pair()
    tokens = torch.randint(0, 96, (1, 31), generator=torch.Generator().manual_seed(0))
    theirs = mixtral(tokens, output_router_logits=True)
    output = decoder(decoder.embedding(tokens), torch.ones_like(tokens), torch.arange(31)[None])
    found = decoder.logits(output.hidden_BTD)
    assert theirs.logits.abs().max() > 1
    assert torch.allclose(found, theirs.logits, atol=1e-5, rtol=1e-5)
    theirs.logits.square().mean().backward()
    found.square().mean().backward()
    gradients = from_mixtral({name: parameter.grad for name, parameter in mixtral.named_parameters()})
    for name, parameter in decoder.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4), name


def test_the_balance_loss_of_one_layer_is_mixtrals_divided_by_the_choices():
    """Theirs sums f over the k choices of a token, so that perfect balance is k; ours is one. Theirs also pools all
    layers into one group, so one layer is compared at a time."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    _, decoder = pair()
    x = torch.randn(1, 31, 48, generator=torch.Generator().manual_seed(1))
    for layer in decoder.layers:
        _, stats = layer.ffn(x, Places.of_text(torch.ones(1, 31, dtype=torch.bool)))
        logits = torch.nn.functional.linear(x[0], layer.ffn.router.weight)
        expected = load_balancing_loss_func((logits,), EXPERTS, TOP_K)
        assert torch.allclose(stats.balance / 31, expected / TOP_K, atol=1e-5)
