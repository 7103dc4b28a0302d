"""How many tokens an expert takes at most, and which are turned away (GShard, section 3.1; Switch, section 2.2).

A token that all its experts turn away passes the layer by: the residual connection is all that is left of it.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.model.moe.routing import Choice, Places, Routing, TokenChoice, places_in_line

log = logging.getLogger(__name__)
ARGS = "model.decoder.moe.capacity"


class Capacity:
    """Each expert takes at most ``factor * k * tokens / E`` choices of a group.

    Args:
        train: The factor in training; at 1 nothing is dropped only if balance is perfect.
        evaluate: The factor in evaluation and generation. By default nothing is dropped there, since what is dropped
            would depend on what else is in the batch; a factor warns of that.
        priority: Who comes first. ``position``: all first choices in the order of their positions, then all second
            ones (GShard, Switch); ``batch``: the same, but in the order of how sure tokens are of their first (batch
            prioritised routing, V-MoE and NLLB); ``probability``: the choices with the highest shares, first or not.
            All let a token be turned away for a later one's sake, ``position`` only where tokens choose several.
        group: Whether tokens compete within a ``row`` (a sequence) or in the whole micro-batch.
        pad: Fill every expert up to its capacity, so that all have the same number of rows whatever is chosen.

    Raises:
        UserError: A factor below 1.
    """

    def __init__(
        self,
        train: float = 1.25,
        evaluate: float | None = None,
        *,
        priority: Literal["position", "probability", "batch"] = "position",
        group: Literal["row", "batch"] = "row",
        pad: bool = False,
    ) -> None:
        for name, factor in (("train", train), ("evaluate", evaluate)):
            if factor is not None and not factor >= 1:
                raise UserError(
                    f"{ARGS}.{name} is {factor}: not all choices would fit even at perfect balance; expected 1 or more"
                )
        self.train, self.evaluate, self.priority, self.group, self.pad = train, evaluate, priority, group, pad
        if evaluate is not None:
            log.warning(
                "%s.evaluate is %s: an answer will depend on what else is in its batch; null drops nothing in "
                "evaluation",
                ARGS,
                evaluate,
            )

    def __call__(self, routing: Routing, places: Places, experts: int, training: bool) -> Choice:
        """The router's choice without what finds no room; padding finds none. Where experts chose, all is as it was."""
        factor, choice = self.train if training else self.evaluate, routing.choice
        if factor is None or not isinstance(choice, TokenChoice):
            return choice
        rows, positions = places.valid_BT.shape
        groups, tokens = (rows, positions) if self.group == "row" else (1, rows * positions)
        choices = choice.experts_MK.numel()
        limit = math.ceil(min(tokens, factor * choices / groups / experts))
        wanted_MK = places.valid_BT.flatten().unsqueeze(-1).expand_as(choice.experts_MK)
        if choice.kept_MK is not None:
            wanted_MK = wanted_MK & choice.kept_MK
        group_M = torch.arange(len(wanted_MK), device=wanted_MK.device) // tokens
        # what nobody wants queues at an expert of its own, so that it takes nobody's room
        line_MK = group_M.unsqueeze(-1) * (experts + 1) + choice.experts_MK.where(wanted_MK, experts)
        order_C = self._order(choice.experts_MK, routing.shares_BTE.detach().flatten(0, 1))
        place_C = places_in_line(line_MK.T.flatten()[order_C])
        place_MK = torch.empty_like(place_C).scatter_(0, order_C, place_C).view(-1, len(line_MK)).T
        room = groups * experts * limit
        return choice.keep(wanted_MK & (place_MK < limit), room if self.pad else min(choices, room), self.pad)

    def _order(self, experts_MK: Tensor, shares_ME: Tensor) -> Tensor:
        """int64[K * M]: choices (all first ones, then all second ones, ...) from the most to the least entitled."""
        tokens, top_k = experts_MK.shape
        first_K1 = torch.arange(top_k, device=experts_MK.device).unsqueeze(-1) * tokens
        if self.priority == "probability":
            return shares_ME.gather(1, experts_MK).T.flatten().argsort(descending=True, stable=True)
        if self.priority == "batch":
            return (first_K1 + shares_ME.amax(-1).argsort(descending=True, stable=True)).flatten()
        return (first_K1 + torch.arange(tokens, device=experts_MK.device)).flatten()
