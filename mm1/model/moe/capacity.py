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
from mm1.model.moe.routing import Places, TokenChoice

log = logging.getLogger(__name__)
ARGS = "model.decoder.moe.capacity"


class Capacity:
    """Each expert takes at most ``factor * k * tokens / E`` choices of a group.

    Args:
        train: The factor in training; at 1 nothing is dropped only if balance is perfect.
        evaluate: The factor in evaluation and generation. By default nothing is dropped there, since what is dropped
            would depend on what else is in the batch; a factor warns of that.
        priority: Who comes first. ``position``: all first choices in the order of their positions, then all second
            ones (GShard, Switch); ``probability``: the choices with the highest shares; ``batch``: all choices of the
            tokens that are surest of their first (batch prioritised routing of V-MoE).
        group: Whether tokens compete within a ``row`` (a sequence) or in the whole micro-batch.
        pad: Fill every expert up to its capacity, so that all have the same number of rows whatever is chosen.
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

    def __call__(self, choice: TokenChoice, places: Places, experts: int, training: bool) -> TokenChoice:
        """The same choices without those that find no room; padding finds none."""
        factor = self.train if training else self.evaluate
        if factor is None:
            return choice
        rows, positions = places.valid_BT.shape
        groups, tokens = (rows, positions) if self.group == "row" else (1, rows * positions)
        top_k = choice.experts_MK.shape[-1]
        limit = min(tokens, math.ceil(factor * top_k * tokens / experts))
        place_MK = self._places_in_line(choice, places.valid_BT.flatten(), groups, experts)
        kept_MK = (place_MK < limit) & places.valid_BT.flatten().unsqueeze(-1)
        return choice.keep(kept_MK, min(len(place_MK) * top_k, groups * experts * limit))

    def _places_in_line(self, choice: TokenChoice, valid_M: Tensor, groups: int, experts: int) -> Tensor:
        """int64[M, K]: how many choices stand before this one at its expert."""
        tokens, top_k = choice.experts_MK.shape
        device = valid_M.device
        group_M = torch.arange(tokens, device=device) // (tokens // groups)
        # padding queues at an expert of its own, so that it takes nobody's room
        line_MK = group_M.unsqueeze(-1) * (experts + 1) + choice.experts_MK.where(valid_M.unsqueeze(-1), experts)
        order_C = self._order(choice)
        line_C = line_MK.T.flatten()[order_C]  # choices in the order of first choices, second choices, ...
        sorted_C, by_line_C = line_C.sort(stable=True)
        at_C = torch.arange(len(line_C), device=device)
        first_C = torch.searchsorted(sorted_C, sorted_C)  # where each line begins
        place_C = torch.empty_like(at_C).scatter_(0, order_C[by_line_C], at_C - first_C)
        return place_C.view(top_k, tokens).T

    def _order(self, choice: TokenChoice) -> Tensor:
        """int64[K * M]: choices (all first ones, then all second ones, ...) from the most to the least entitled."""
        weights_KM = choice.weights_MK.T
        if self.priority == "probability":
            return weights_KM.flatten().argsort(descending=True, stable=True)
        if self.priority == "batch":
            return weights_KM[0].repeat(len(weights_KM)).argsort(descending=True, stable=True)
        return torch.arange(weights_KM.numel(), device=weights_KM.device)
