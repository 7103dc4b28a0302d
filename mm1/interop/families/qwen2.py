"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): biases on query, key and value; windows in the upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import Family
from mm1.interop.settings import Settings
from mm1.interop.windows import window_arguments, window_settings


class Qwen2(Family):
    """Biases always, windows only where ``use_sliding_window`` says so."""

    architectures = ("Qwen2ForCausalLM",)
    defaults = {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
    fixed = {"attention_bias": "qkv"}

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Windows."""
        return window_arguments(settings)

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Windows."""
        return window_settings(arguments)
