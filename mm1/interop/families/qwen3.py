"""Qwen 3 (Yang et al. 2025, arXiv 2505.09388): queries and keys normalised head by head, heads of any width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import QK_NORM, Family
from mm1.interop.settings import Settings
from mm1.interop.windows import window_arguments, window_settings


class Qwen3(Family):
    """RMSNorm over each head, biases on all four projections or on none, windows as in Qwen 2."""

    architectures = ("Qwen3ForCausalLM",)
    defaults = {
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    fixed = {"qk_norm": "head"}
    layer = {**Family.layer, **QK_NORM}

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Biases and windows."""
        return window_arguments(settings) | ({"attention_bias": "all"} if settings.flag("attention_bias") else {})

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Biases and windows."""
        return window_settings(arguments) | {"attention_bias": arguments["attention_bias"] == "all"}
