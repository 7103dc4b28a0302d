"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama whose attention may see a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import Family
from mm1.interop.settings import Settings


class Mistral(Family):
    """A window in every layer, or in none where ``sliding_window`` is null."""

    architectures = ("MistralForCausalLM",)
    defaults = {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """The window."""
        window = settings.whole_or_none("sliding_window")
        return {} if window is None else {"window_tokens": window}

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The window."""
        return {"sliding_window": arguments["window_tokens"]}
