"""ST-MoE's router: GShard's, which keeps second experts more often (ST-MoE, section 2 and appendix C)."""

from __future__ import annotations

from mm1.model.moe.routers.gshard import GShard


class STMoE(GShard):
    """Top-2; training keeps the second expert with probability ``min(1, share / 0.2)``.

    The rest of ST-MoE are options beside the router: every fourth layer, capacity 1.25 in training and 2 in
    evaluation, the z-loss, and a dense layer around the sparse one (:mod:`mm1.model.moe.around`).

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Two.
        threshold: Renormalised share from which the second expert is always kept.
    """

    def __init__(self, width: int, experts: int, top_k: int = 2, *, threshold: float = 0.2) -> None:
        super().__init__(width, experts, top_k, threshold=threshold)
