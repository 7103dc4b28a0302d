"""Routing that is even whatever comes in, for benchmarks: what a layer costs without the luck of its router."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mm1.model.moe.routers.base import LinearRouter
from mm1.model.moe.routing import Places, Routing, TokenChoice


class ForceBalanced(LinearRouter):
    """Tokens go to the experts in turn, padding after all others, so that loads differ by one at most.

    Not for models that are to be used: a token's experts depend on its place in the batch.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits.
        weights: ``softmax``: the router's shares of them, renormalised, so that it costs and learns what another does;
            ``even``: 1 / k each.
    """

    def __init__(
        self, width: int, experts: int, top_k: int = 2, *, weights: Literal["softmax", "even"] = "softmax"
    ) -> None:
        super().__init__(width, experts, top_k)
        self.weights = weights

    @property
    def causal(self) -> bool:
        """No: where a token goes depends on all before it in the batch."""
        return False

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        experts_MK = self._in_turn(places.valid_BT.flatten())
        weights_MK, best_MK = shares_BTE.flatten(0, 1).gather(1, experts_MK).topk(self.top_k)
        weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        if self.weights == "even":
            weights_MK = torch.full_like(weights_MK, 1 / self.top_k)
        return Routing(TokenChoice(experts_MK.gather(1, best_MK), weights_MK), logits_BTE, shares_BTE)

    def _in_turn(self, valid_M: Tensor) -> Tensor:
        """int64[M, K]."""
        before_M = torch.where(valid_M, valid_M.cumsum(0), valid_M.sum() + (~valid_M).cumsum(0)) - 1
        turns_MK = before_M.unsqueeze(1) * self.top_k + torch.arange(self.top_k, device=valid_M.device)
        if not self.failed:
            return turns_MK % self.experts
        standing = [expert for expert in range(self.experts) if expert not in self.failed]
        return torch.tensor(standing, device=valid_M.device)[turns_MK % len(standing)]
