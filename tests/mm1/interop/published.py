"""Tiny random models of every family that comes in, in folders as their makers publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.mm1.data import hf_folders

VOCABULARY = 350  # a little more than the tokenizer has
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": None,  # its embedding would learn nothing
}


def stretched(kind: str, **scaling: Any) -> dict[str, Any]:
    """Settings of a model that was trained on 16 positions."""
    parameters = {"rope_type": kind, "rope_theta": 5000.0, "factor": 4.0, **scaling}
    return {"max_position_embeddings": 16, "rope_parameters": parameters}


LLAMA3 = {"original_max_position_embeddings": 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"original_max_position_embeddings": 8, "beta_fast": 16.0, "attention_factor": 1.3}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

# name: transformers' class, what is not as in SHAPE
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_bias_wide": ("Llama", {"attention_bias": True, "head_dim": 20, "num_key_value_heads": None}),
    "llama_linear": ("Llama", stretched("linear")),
    "llama_dynamic": ("Llama", stretched("dynamic")),
    "llama_yarn": ("Llama", stretched("yarn", **YARN)),
    "llama_llama3": ("Llama", stretched("llama3", **LLAMA3)),
    "smollm": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 12}),
    "mistral_full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", WINDOWS),
    "qwen2_yarn": ("Qwen2", stretched("yarn", truncate=False) | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_bias": ("Qwen3", {"head_dim": 8, "attention_bias": True, **WINDOWS}),
    "olmo2": ("Olmo2", {}),
    "olmo2_bias": ("Olmo2", {"attention_bias": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "sliding_window": 9}),
    "olmoe": ("Olmoe", {**EXPERTS, "clip_qkv": 0.9}),
    "olmoe_shares": ("Olmoe", {**EXPERTS, "norm_topk_prob": True, "attention_bias": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**EXPERTS, "moe_intermediate_size": 20, "norm_topk_prob": True, "mlp_only_layers": [1], "head_dim": 16},
    ),
    "qwen3_moe_second": (
        "Qwen3Moe",
        {**EXPERTS, "moe_intermediate_size": 20, "decoder_sparse_step": 2, "head_dim": 8, "attention_bias": True},
    ),
}
SPARSE = [name for name, (family, _) in MODELS.items() if family in ("Mixtral", "Olmoe", "Qwen3Moe")]


def make(name: str, **changes: Any) -> Any:
    """transformers' own model of one of ``MODELS``, norms and biases random as well."""
    family, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SHAPE | settings | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write(
    name: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    stacked: bool = False,
    shard: str = "50GB",
    tokenizer: str = "gpt2",
) -> Path:
    """Write the folder of one of ``MODELS`` with its tokenizer.

    Args:
        name: Which.
        folder: Where.
        dtype: Type of its weights.
        stacked: Experts as transformers 5 keeps them in memory, not one by one.
        shard: Largest size of a file.
        tokenizer: Which of :data:`tests.mm1.data.hf_folders.KINDS`.
    """
    hf_folders.write(tokenizer, folder)
    make(name).to(dtype).save_pretrained(folder, max_shard_size=shard, save_original_format=not stacked)
    return folder


def change(folder: Path, **settings: Any) -> Path:
    """Set keys of the folder's ``config.json``; a value of None takes the key away."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def older(folder: Path) -> Path:
    """Rotary settings as transformers 4 wrote them."""
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {**rope, "rope_type" if kind == "llama3" else "type": kind}
    return change(folder, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
