"""The decoder's options against the families that brought them: tiny random models of transformers, weights by hand.

Every family with each option that its open models use; read at once, and token by token with a cache.
"""

import re
from functools import partial

import pytest
import torch
import transformers

from mm1.model.decoder import Decoder
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import TopK
from mm1.model.rope import DynamicRope, LinearRope, Llama3Rope, YarnRope

TOKENS = 60  # of a document; the original length of every stretched model is 16
HF = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": None,  # its embedding would learn nothing
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
OURS = {"width": 48, "layers": 3, "heads": 6, "kv_heads": 2, "ffn_width": 80}


def stretched(**scaling):
    return {"max_position_embeddings": 16, "rope_parameters": {"rope_theta": 10000.0, **scaling}}


def moe(**options):
    return lambda width, ffn_width: MoE(width, ffn_width, **options)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# name: transformers' class, its settings, ours
FAMILIES = {
    "llama": ("Llama", {}, {}),
    "llama_bias_wide": ("Llama", {"attention_bias": True, "head_dim": 20}, {"attention_bias": "all", "head_width": 20}),
    "llama_linear": ("Llama", stretched(rope_type="linear", factor=4.0), {"rope": LinearRope(4.0)}),
    "llama_dynamic": ("Llama", stretched(rope_type="dynamic", factor=4.0), {"rope": DynamicRope(4.0, 16)}),
    "llama_yarn": ("Llama", stretched(**YARN), {"rope": YarnRope(4.0, 16)}),
    "llama_llama3": ("Llama", stretched(**LLAMA3), {"rope": Llama3Rope(4.0, 16)}),
    "smollm": ("Llama", {"tie_word_embeddings": True}, {"tied": True}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 12}, {"window_tokens": 7, "head_width": 12}),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"attention_bias": "qkv", "window_tokens": 5, "windowed_layers": [1, 2]},
    ),
    "qwen2_yarn": ("Qwen2", stretched(**YARN), {"attention_bias": "qkv", "rope": YarnRope(4.0, 16)}),
    "qwen3": ("Qwen3", {"head_dim": 16}, {"head_width": 16, "qk_norm": "head"}),
    "olmo2": ("Olmo2", {}, {"norm_place": "after", "qk_norm": "full"}),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 9},
        {"moe": moe(experts=6, top_k=2), "moe_every": 1, "window_tokens": 9},
    ),
    "olmoe": (
        "Olmoe",
        {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False, "clip_qkv": 0.9},
        {
            "moe": moe(experts=6, top_k=3, router=partial(TopK, renormalise=False)),
            "moe_every": 1,
            "qk_norm": "full",
            "clip_qkv": 0.9,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 1,
            "head_dim": 16,
        },
        {
            "moe": moe(experts=6, top_k=3, expert_width=20),
            "moe_every": 1,
            "dense_layers": [1],
            "head_width": 16,
            "qk_norm": "head",
        },
    ),
}
RENAMED = [
    (r"^lm_head", "head"),
    (r"^model\.embed_tokens", "embedding"),
    (r"^model\.", ""),
    (r"self_attn\.([qkvo])_proj", r"attention.\1"),
    (r"self_attn\.([qk])_norm", r"attention.\1_norm"),
    (r"mlp\.gate\.", "ffn.router."),
    (r"mlp\.experts\.(\w+)_proj", r"ffn.experts.\1"),
    (r"mlp\.(\w+)_proj", r"ffn.\1"),
]
BEFORE = [("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")]
AFTER = [("post_attention_layernorm", "attention_norm"), ("post_feedforward_layernorm", "ffn_norm")]


def ours(state, norm_place="before"):
    """Our names for transformers' tensors; gate and up of a dense layer become one."""
    found = {}
    for name, tensor in state.items():
        for theirs, mine in RENAMED + (BEFORE if norm_place == "before" else AFTER):
            name = re.sub(theirs, mine, name)
        found[name] = tensor
    for name in [name for name in found if name.endswith("ffn.gate.weight")]:
        up = found.pop(name.replace("gate", "up"))
        found[name.replace("gate", "gate_up")] = torch.cat((found.pop(name), up))
    return found


def pair(name):
    """Both models with the same weights, norms and biases among them random too."""
    family, theirs, mine = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(HF | theirs))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    state = model.state_dict()
    if mine.get("tied"):
        del state["lm_head.weight"]
    decoder = Decoder(96, **(OURS | mine))
    decoder.load_state_dict(ours(state, mine.get("norm_place", "before")))
    return model, decoder


def read(decoder, tokens, first=0, cache=None):
    positions = torch.arange(first, first + tokens.shape[1]).expand_as(tokens)
    x = decoder.embedding(tokens)
    return decoder.logits(decoder(x, torch.ones_like(tokens), positions, cache).hidden_BTD)


@pytest.fixture(scope="module")
def tokens():
    """Two documents."""
    return torch.randint(0, 96, (2, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers(name, tokens):
    model, decoder = pair(name)
    expected = model(tokens).logits
    assert expected.abs().max() > 1
    assert torch.allclose(read(decoder, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_token_by_token_equals_transformers_and_reading_at_once(name, tokens):
    model, decoder = pair(name)
    cache, past = decoder.new_cache(2, TOKENS), None
    found, expected = [], []
    for first, end in [(0, 9), *((at, at + 1) for at in range(9, TOKENS))]:
        output = model(tokens[:, first:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        expected.append(output.logits)
        found.append(read(decoder, tokens[:, first:end], first, cache))
    found, expected = torch.cat(found, 1), torch.cat(expected, 1)
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)
    apart = (found - read(decoder, tokens)).abs().max()
    if name == "llama_dynamic":  # keys stay as they were turned when the document was shorter, as in transformers
        assert apart > 1e-2
    else:
        assert apart < 1e-4


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("llama_linear", {"rope": None}),
        ("llama_dynamic", {"rope": None}),
        ("llama_yarn", {"rope": None}),
        ("llama_llama3", {"rope": None}),
        ("mistral", {"window_tokens": None}),
        ("mistral", {"window_tokens": 8}),
        ("qwen2", {"windowed_layers": None}),
        ("olmo2", {"norm_place": "before"}),
        ("olmoe", {"clip_qkv": None}),
        ("olmoe", {"moe": moe(experts=6, top_k=3)}),
    ],
)
@torch.no_grad()
def test_these_models_tell_when_an_option_without_weights_is_left_out(name, option, tokens):
    model, decoder = pair(name)
    other = Decoder(96, **(OURS | FAMILIES[name][2] | option))
    other.load_state_dict(decoder.state_dict())
    assert (read(other, tokens) - model(tokens).logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["olmo2", "olmoe", "qwen3_moe", "qwen2", "llama_bias_wide"])
def test_gradients_equal_transformers(name, tokens):
    model, decoder = pair(name)
    model(tokens).logits.square().mean().backward()
    read(decoder, tokens).square().mean().backward()
    place = FAMILIES[name][2].get("norm_place", "before")
    expected = ours({name: parameter.grad for name, parameter in model.named_parameters()}, place)
    for parameter_name, parameter in decoder.named_parameters():
        wanted = expected[parameter_name]
        assert torch.allclose(parameter.grad, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-7), parameter_name
