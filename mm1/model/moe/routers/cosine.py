"""Cosines in a small space: X-MoE's router against collapse of the representation (Chi et al. 2022, section 3).

A linear router pulls hidden states towards the few vectors of the experts. In a projected space and on a sphere it can
pull in few directions only, and no expert wins by a long vector. The authors' code departs from the paper: there the
tokens are not normalised and the temperature is not learned. This is the paper.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from mm1.errors import UserError, at_least
from mm1.model.moe.routers.base import ARGS, Router, exact, scores
from mm1.model.moe.routing import Places, Routing, TokenChoice

FIRST = {"softmax": 0.3, "sigmoid": 0.07}
LEAST = 0.01  # a learned temperature may not come closer to zero (Tutel's clamp, which is on its inverse)


class Cosine(Router):
    """The ``top_k`` best by cosine / temperature. The balance loss sees the first temperature, which is fixed.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits.
        space_width: Width of the space that tokens and experts are compared in; half the experts if not given.
        gate: What makes weights of cosine / temperature: a softmax over all experts, or each expert's own sigmoid.
        temperature: At first, and learned from there; the paper's for the gate if not given, 0.3 or 0.07.
        renormalise: Whether the shares of the chosen ones are brought to a sum of one; X-MoE's single one is not.

    Raises:
        UserError: A space of no width, or a temperature below the least.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int = 2,
        *,
        space_width: int | None = None,
        gate: Literal["softmax", "sigmoid"] = "softmax",
        temperature: float | None = None,
        renormalise: bool = False,
    ) -> None:
        super().__init__(width, experts, top_k)
        space_width = (experts + 1) // 2 if space_width is None else space_width
        at_least(1, {f"{ARGS}.router.space_width": space_width})
        temperature = FIRST[gate] if temperature is None else temperature
        if not temperature >= LEAST:
            raise UserError(f"{ARGS}.router.temperature is {temperature}; expected at least {LEAST}")
        self.gate, self.first_temperature, self.renormalise = gate, temperature, renormalise
        self.projection = nn.Parameter(torch.empty(space_width, width))
        self.vectors = nn.Parameter(torch.empty(experts, space_width))
        self.temperature = nn.Parameter(torch.empty(1))

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        tokens_BTS = normalize(scores(x_BTD, exact(self.projection)), dim=-1)
        cosines_BTE = self.standing(linear(tokens_BTS, normalize(exact(self.vectors), dim=-1)))
        logits_BTE = cosines_BTE / exact(self.temperature).clamp(min=LEAST)
        gates_BTE = logits_BTE.softmax(-1) if self.gate == "softmax" else logits_BTE.sigmoid()
        weights_MK, experts_MK = gates_BTE.flatten(0, 1).topk(self.top_k)
        if self.renormalise:
            weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        shares_BTE = (cosines_BTE / self.first_temperature).softmax(-1)
        return Routing(TokenChoice(experts_MK, weights_MK), logits_BTE, shares_BTE)

    @torch.no_grad()
    def reset(self) -> None:
        """The first temperature."""
        self.temperature.fill_(self.first_temperature)
