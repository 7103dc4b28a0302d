"""Llama (Touvron et al. 2023) and what shares its architecture: SmolLM and SmolLM2, Yi, and many more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import Family
from mm1.interop.settings import Settings


class Llama(Family):
    """The plain case; biases on all four projections of attention or on none."""

    architectures = ("LlamaForCausalLM",)

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Biases."""
        return {"attention_bias": "all"} if settings.flag("attention_bias") else {}

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Biases."""
        return {"attention_bias": arguments["attention_bias"] == "all", "mlp_bias": False}
