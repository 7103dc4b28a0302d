"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): many small experts in every layer, clipped attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import QK_NORM, STACKED, Family, experts, renormalised, sparse
from mm1.interop.settings import Settings


class Olmoe(Family):
    """RMSNorm over all heads at once, values clipped, the shares of the chosen experts as the softmax left them."""

    architectures = ("OlmoeForCausalLM",)
    defaults = {"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False}
    fixed = {"qk_norm": "full", "moe_every": 1}
    layer = {**Family.layer, **QK_NORM}
    layouts = (experts("mlp", "gate_proj", "up_proj", "down_proj"), STACKED)

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Experts, biases, clipping."""
        found = sparse(settings, "num_experts", renormalise=settings.flag("norm_topk_prob"))
        if settings.get("clip_qkv") is not None:
            found["clip_qkv"] = settings.real("clip_qkv")
        return found | ({"attention_bias": "all"} if settings.flag("attention_bias") else {})

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Experts, biases, clipping."""
        moe = (arguments["moe"] or {}).get("init_args", {})
        return {
            "num_experts": moe.get("experts"),
            "num_experts_per_tok": moe.get("top_k"),
            "norm_topk_prob": renormalised(moe),
            "clip_qkv": arguments["clip_qkv"],
            "attention_bias": arguments["attention_bias"] == "all",
        }
