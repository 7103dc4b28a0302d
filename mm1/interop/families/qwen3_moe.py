"""Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388): Qwen 3 with narrow experts in most layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import QK_NORM, STACKED, Family, experts, renormalised, sparse
from mm1.interop.settings import Settings


class Qwen3Moe(Family):
    """Experts have their own width, every n-th layer has them, and some layers are told to stay dense."""

    architectures = ("Qwen3MoeForCausalLM",)
    defaults = {
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    }
    fixed = {"qk_norm": "head"}
    layer = {**Family.layer, **QK_NORM}
    layouts = (experts("mlp", "gate_proj", "up_proj", "down_proj"), STACKED)

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Experts, where they are, biases and the window."""
        count = next((key for key in ("num_experts", "num_local_experts") if settings.get(key) is not None), None)
        if count is None:
            raise settings.fault("num_experts", "a whole number, at least 1")
        dense = settings.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
            raise settings.fault("mlp_only_layers", "a list of layers")
        found = sparse(
            settings,
            count,
            renormalise=settings.flag("norm_topk_prob"),
            expert_width=settings.whole("moe_intermediate_size"),
        )
        found |= {"moe_every": settings.whole("decoder_sparse_step"), "dense_layers": sorted({*dense})}
        if settings.flag("use_sliding_window") and settings.get("sliding_window") is not None:
            found["window_tokens"] = settings.whole("sliding_window")
        return found | ({"attention_bias": "all"} if settings.flag("attention_bias") else {})

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Experts, where they are, biases and the window."""
        moe = (arguments["moe"] or {}).get("init_args", {})
        window = arguments["window_tokens"]
        return {
            "num_experts": moe.get("experts"),
            "num_experts_per_tok": moe.get("top_k"),
            "norm_topk_prob": renormalised(moe),
            "moe_intermediate_size": moe.get("expert_width") or arguments["ffn_width"],
            "decoder_sparse_step": arguments["moe_every"],
            "mlp_only_layers": list(arguments["dense_layers"]),
            "attention_bias": arguments["attention_bias"] == "all",
            "sliding_window": window,
            "use_sliding_window": window is not None,
        }
