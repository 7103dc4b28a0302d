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

from mm1.errors import UserError, at_least
from mm1.model.moe.routing import Places, Routing

ARGS = "model.decoder.moe.balance"


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
        value_G = self.value(shares, chance, hot, count)
        return (value_G.where(count.sum((1, 2)) > 0, 1) * valid_B).sum()  # where nothing counts, nothing is uneven

    @abstractmethod
    def value(self, shares_GTE: Tensor, chance_GTE: Tensor | None, hot_GTE: Tensor, count_GT1: Tensor) -> Tensor:
        """[G], the loss of each group; tokens where ``count_GT1`` is zero do not count."""

    def _counted(self, places: Places) -> Tensor:
        kinds = {"all": torch.ones_like(places.image_BT), "text": ~places.image_BT, "image": places.image_BT}
        return kinds[self.tokens] if self.padding else kinds[self.tokens] & places.valid_BT

    def summed(self, x: Tensor) -> Tensor:
        """Counts of a group, of all ranks where the group is global."""
        return self.over_ranks(x.clone()) if self.group == "global" else x  # a sum over ranks may be made in place


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


class ImportanceAndLoad(Balance):
    """1 + CV² of what experts are given, and of how many tokens they can expect (Shazeer 2017, section 4, appendix A).

    CV is the standard deviation over experts divided by their mean. The importance of an expert is the sum of its
    shares; its load, which is a count and has no gradient, is replaced by the sum of its chances under the router's
    noise. The value is the weighted mean of the two, so the paper's w_importance = w_load = 0.1 are
    ``balance_weight: 0.2`` at equal weights.

    Args:
        group: What is balanced; the paper's is a ``batch``.
        tokens: Which tokens count.
        padding: Whether padding counts too.
        importance: Weight of the importance.
        load: Weight of the load; above 0 it needs a router with noise (``NoisyTopK``).

    Raises:
        UserError: A weight below 0, or two of 0.
    """

    def __init__(
        self,
        group: Literal["row", "batch", "global"] = "batch",
        tokens: Literal["all", "text", "image"] = "all",
        padding: bool = False,
        importance: float = 1.0,
        load: float = 1.0,
    ) -> None:
        super().__init__(group, tokens, padding)
        at_least(0, {f"{ARGS}.importance": importance, f"{ARGS}.load": load})
        if importance + load == 0:
            raise UserError(f"importance and load both weigh 0; expected one above 0 ({ARGS}.importance)")
        self.importance, self.load = importance / (importance + load), load / (importance + load)
        self.of_noise = load > 0

    def value(self, shares_GTE: Tensor, chance_GTE: Tensor | None, hot_GTE: Tensor, count_GT1: Tensor) -> Tensor:
        """[G]."""
        value_G = self.importance * self._unevenness(shares_GTE, count_GT1)
        if self.load:
            assert chance_GTE is not None, "the layer asks for a router with noise"
            value_G = value_G + self.load * self._unevenness(chance_GTE, count_GT1)
        return value_G

    def _unevenness(self, parts_GTE: Tensor, count_GT1: Tensor) -> Tensor:
        """[G]: E * sum_e(v_e²) / sum_e(v_e)² is 1 + CV² of v, the sums over tokens."""
        here_GE, tokens_G1 = (parts_GTE * count_GT1).sum(1), count_GT1.sum(1)
        # Every rank weighs the same value by its own tokens, so its gradient stands for that of all of them.
        factor_G1 = self.summed(tokens_G1) / tokens_G1.clamp(min=1)
        all_GE = self.summed(here_GE.detach()) + (here_GE - here_GE.detach()) * factor_G1
        total_G = all_GE.sum(-1)
        total_G = total_G.where(total_G > 0, 1)
        return all_GE.square().sum(-1) * all_GE.shape[-1] / total_G.square()


def z_loss(logits_BTE: Tensor, valid_BT: Tensor) -> Tensor:
    """Squared logsumexp of the router's logits, summed over tokens (ST-MoE, section 3.3)."""
    return (logits_BTE.logsumexp(-1).square() * valid_BT).sum()


def _itself(x: Tensor) -> Tensor:
    return x
