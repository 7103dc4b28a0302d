"""OLMo 2 (OLMo team 2025, arXiv 2501.00656): norms behind the branches, queries and keys normalised as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import QK_NORM, Family
from mm1.interop.settings import Settings


class Olmo2(Family):
    """x + norm(f(x)), RMSNorm over all heads at once, biases on all four projections or on none."""

    architectures = ("Olmo2ForCausalLM",)
    defaults = {"rms_norm_eps": 1e-5}
    fixed = {"norm_place": "after", "qk_norm": "full"}
    layer = {
        **Family.layer,
        **QK_NORM,
        "attention_norm.weight": ("post_attention_layernorm.weight",),
        "ffn_norm.weight": ("post_feedforward_layernorm.weight",),
    }

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Biases."""
        return {"attention_bias": "all"} if settings.flag("attention_bias") else {}

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Biases."""
        return {"attention_bias": arguments["attention_bias"] == "all"}
