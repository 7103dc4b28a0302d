"""The ``top_k`` best of a softmax over all experts: Mixtral's router, and OLMoE's and Qwen3-MoE's."""

from __future__ import annotations

from torch import Tensor

from mm1.model.moe.routers.base import LinearRouter
from mm1.model.moe.routing import Places, Routing, TokenChoice


class TopK(LinearRouter):
    """Softmax over all experts, the best kept. Nothing is random, nothing is dropped.

    Renormalised, the shares are a softmax over the chosen scores alone, so that it does not matter which of the two
    comes first (Mixtral, GraniteMoE); as they are (OLMoE), a token that is unsure of its experts hears less of them.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits; with all of them this is the mixture of 1991.
        renormalise: Whether the shares of the chosen ones are brought to a sum of one.
    """

    def __init__(self, width: int, experts: int, top_k: int = 2, *, renormalise: bool = True) -> None:
        super().__init__(width, experts, top_k)
        self.renormalise = renormalise

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        weights_MK, experts_MK = shares_BTE.flatten(0, 1).topk(self.top_k)
        if self.renormalise:
            weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        return Routing(TokenChoice(experts_MK, weights_MK), logits_BTE, shares_BTE)
