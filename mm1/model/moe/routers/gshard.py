"""GShard's router: the best expert always, the second one by chance (GShard, section 2.2 and algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.model.moe.routers.base import ARGS, LinearRouter
from mm1.model.moe.routing import Places, Routing, TokenChoice


class GShard(LinearRouter):
    """Top-2 of a softmax, renormalised; training keeps the second with probability ``min(1, share / threshold)``.

    What the first expert gets does not depend on whether the second was kept. Evaluation keeps both. The paper's
    capacity, where what overflows is left to the residual connection, is ``capacity``; its balance loss counts first
    choices (``LoadTimesShare`` with ``choices: first``). GLaM is this router in every other layer.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Two.
        threshold: Renormalised share from which the second expert is always kept: 0.5 is the paper's ``2 * g2``.

    Raises:
        UserError: Another number of choices than two, or a threshold that is no share.
    """

    def __init__(self, width: int, experts: int, top_k: int = 2, *, threshold: float = 0.5) -> None:
        super().__init__(width, experts, top_k)
        if top_k != 2:
            raise UserError(f"{type(self).__name__} with top_k={top_k}; expected 2 ({ARGS}.top_k)")
        if not 0 < threshold <= 1:
            raise UserError(f"{ARGS}.router.threshold is {threshold}; expected a share, above 0 and at most 1")
        self.threshold = threshold

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        weights_MK, experts_MK = shares_BTE.flatten(0, 1).topk(2)
        weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        choice = TokenChoice(experts_MK, weights_MK)
        if self.training:
            wanted_MK = weights_MK / self.threshold > torch.rand_like(weights_MK)
            first_MK = torch.arange(2, device=wanted_MK.device) == 0
            choice = choice.keep(wanted_MK | first_MK)
        return Routing(choice, logits_BTE, shares_BTE)
