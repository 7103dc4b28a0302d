"""The losses that keep routing healthy: balance in its forms, and the z-loss of ST-MoE.

Implementations scale balance differently (Mixtral's is k at perfect balance, MegaBlocks' divides by layers, Shazeer's
is zero); here every form is one at perfect balance. Losses are *sums* over tokens, so that they add up over
micro-batches and ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mm1.model.moe.routing import Places, Routing


class Balance(ABC):
    """Base of balance losses: one at perfect balance, more where some experts get more than others.

    A product of two means does not add up over parts of a group, so the value depends on what the group is. ``row``
    (a sequence) never depends on how a step is spread over micro-batches and ranks; ``batch`` is a micro-batch of a
    rank; ``global`` takes the load of the micro-batches of all ranks, which lets a sequence be one-sided as long as
    the batch is not.

    Args:
        group: What is balanced.
        tokens: Which tokens count.
        padding: Whether padding counts too.
    """

    of_noise = False  # whether it needs the chances of a noisy router

    def __init__(
        self,
        group: Literal["row", "batch", "global"] = "row",
        tokens: Literal["all", "text", "image"] = "all",
        padding: bool = False,
    ) -> None:
        self.group, self.tokens, self.padding = group, tokens, padding
        self.over_ranks: Callable[[Tensor], Tensor] = _itself  # training on several ranks puts a sum in its place

    def __call__(self, routing: Routing, hot_BTE: Tensor, places: Places) -> Tensor:
        """The loss times the tokens that are not padding, summed.

        Args:
            routing: The router's answer.
            hot_BTE: fp32, one where a token chose an expert, dropped choices included.
            places: What the positions are.
        """
        shares, chance, hot, valid_B = routing.shares_BTE, routing.chance_BTE, hot_BTE, places.valid_BT.sum(1)
        count = self._counted(places).unsqueeze(-1).to(shares.dtype)
        if self.group != "row":
            shares, hot, count = (part.flatten(0, 1).unsqueeze(0) for part in (shares, hot, count))
            chance = None if chance is None else chance.flatten(0, 1).unsqueeze(0)
            valid_B = valid_B.sum(0, keepdim=True)
        return (self.value(shares, chance, hot, count) * valid_B).sum()

    @abstractmethod
    def value(self, shares_GTE: Tensor, chance_GTE: Tensor | None, hot_GTE: Tensor, count_GT1: Tensor) -> Tensor:
        """[G], the loss of each group; tokens where ``count_GT1`` is zero do not count."""

    def _counted(self, places: Places) -> Tensor:
        kinds = {"all": torch.ones_like(places.image_BT), "text": ~places.image_BT, "image": places.image_BT}
        return kinds[self.tokens] if self.padding else kinds[self.tokens] & places.valid_BT

    def summed(self, x: Tensor) -> Tensor:
        """Counts of a group, of all ranks where the group is global."""
        return self.over_ranks(x) if self.group == "global" else x


class LoadTimesShare(Balance):
    """E * sum_e(f_e * P_e) of GShard and Switch: f the share of choices that fell on e, P its mean share of a token.

    Args:
        group: What is balanced.
        tokens: Which tokens count.
        padding: Whether padding counts too.
        choices: All of a token's choices, or the first alone (GShard, ST-MoE).
    """

    def __init__(
        self,
        group: Literal["row", "batch", "global"] = "row",
        tokens: Literal["all", "text", "image"] = "all",
        padding: bool = False,
        choices: Literal["all", "first"] = "all",
    ) -> None:
        super().__init__(group, tokens, padding)
        self.choices = choices

    def value(self, shares_GTE: Tensor, chance_GTE: Tensor | None, hot_GTE: Tensor, count_GT1: Tensor) -> Tensor:
        """[G]."""
        if self.choices == "first":
            first_GT = (shares_GTE.detach() * hot_GTE).argmax(-1)
            hot_GTE = torch.zeros_like(hot_GTE).scatter_(-1, first_GT.unsqueeze(-1), 1.0)
        load_GE = self.summed((hot_GTE * count_GT1).sum(1))
        load_GE = load_GE / load_GE.sum(-1, keepdim=True).clamp(min=1)
        mean_GE = (shares_GTE * count_GT1).sum(1) / count_GT1.sum(1).clamp(min=1)
        return (load_GE * mean_GE).sum(-1) * load_GE.shape[-1]


def z_loss(logits_BTE: Tensor, valid_BT: Tensor) -> Tensor:
    """Squared logsumexp of the router's logits, summed over tokens (ST-MoE, section 3.3)."""
    return (logits_BTE.logsumexp(-1).square() * valid_BT).sum()


def _itself(x: Tensor) -> Tensor:
    return x
