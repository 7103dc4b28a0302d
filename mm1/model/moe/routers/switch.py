"""Switch's router: one expert a token, its answer scaled by how sure the router is (Switch, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.model.moe.routers.base import ARGS, LinearRouter, exact
from mm1.model.moe.routing import Places, Routing, TokenChoice


class Switch(LinearRouter):
    """Top-1 of a softmax; the weight is the share itself, since a renormalised one would be 1 and teach nothing.

    What the router reads, and it alone, is multiplied by uniform noise in training. Its weights begin small
    (:mod:`mm1.model.init`).

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: One.
        jitter: Noise of ``1 - jitter`` to ``1 + jitter``.

    Raises:
        UserError: Another number of choices than one, or noise that could turn a sign.
    """

    def __init__(self, width: int, experts: int, top_k: int = 1, *, jitter: float = 0.01) -> None:
        super().__init__(width, experts, top_k)
        if top_k != 1:
            raise UserError(f"Switch with top_k={top_k}; expected 1, Switch sends a token to one expert ({ARGS}.top_k)")
        if not 0 <= jitter < 1:
            raise UserError(f"{ARGS}.router.jitter is {jitter}; expected at least 0 and less than 1")
        self.jitter = jitter

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        x_BTD = exact(x_BTD)  # half precision has two numbers between 0.99 and 1
        if self.training and self.jitter:
            x_BTD = x_BTD * torch.empty_like(x_BTD).uniform_(1 - self.jitter, 1 + self.jitter)
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        weights_M1, experts_M1 = shares_BTE.flatten(0, 1).topk(1)
        return Routing(TokenChoice(experts_M1, weights_M1), logits_BTE, shares_BTE)
