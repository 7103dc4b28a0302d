"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.family import STACKED, Family, experts, sparse
from mm1.interop.settings import Settings


class Mixtral(Family):
    """Every expert as wide as the dense layer would be, the shares of the chosen ones brought to a sum of one."""

    architectures = ("MixtralForCausalLM",)
    defaults = {
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    }
    layouts = (experts("block_sparse_moe", "w1", "w3", "w2"), STACKED)

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """Experts and the window."""
        window = settings.whole_or_none("sliding_window")
        moe = sparse(settings, "num_local_experts")
        return moe | {"moe_every": 1} | ({} if window is None else {"window_tokens": window})

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Experts and the window."""
        moe = (arguments["moe"] or {}).get("init_args", {})
        return {
            "num_local_experts": moe.get("experts"),
            "num_experts_per_tok": moe.get("top_k"),
            "sliding_window": arguments["window_tokens"],
        }
