"""Experts choose tokens (Zhou et al. 2022): perfect balance without a loss, and the future is seen.

An expert takes the best tokens of a whole row, so whether a token is taken depends on tokens after it. A decoder that
is trained so can be neither scored nor asked to go on in the same way. What can be done honestly is to remember how
good a token had to be: with such a threshold for each expert a token's experts depend on itself alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mm1.model.moe.routers.base import LinearRouter
from mm1.model.moe.routing import ExpertChoice as TakenTokens
from mm1.model.moe.routing import Places, Routing, TokenChoice

log = logging.getLogger(__name__)

KEPT = 0.99  # of a threshold, at each step
Count = TypeVar("Count", int, Tensor)


class ExpertChoice(LinearRouter):
    """Every expert takes its ``tokens * top_k / experts`` best of a softmax over experts.

    A token is with ``top_k`` experts on average (the paper's capacity factor), some with many, some with none.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits on average.
        group: Whether tokens compete within a ``row`` (a sequence) or in the whole micro-batch.
        at_inference: ``threshold``: an expert takes every token that scores as high as the last one taken did in
            training, so that nobody sees the future. As nobody knows how many these are, there is a row for every
            token and expert. ``batch``: as in training; scores are flattered, and nothing can be generated.
    """

    threshold_E: Tensor
    last_E: Tensor

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int = 2,
        *,
        group: Literal["row", "batch"] = "row",
        at_inference: Literal["threshold", "batch"] = "threshold",
    ) -> None:
        super().__init__(width, experts, top_k)
        self.group, self.at_inference = group, at_inference
        self.register_buffer("threshold_E", torch.empty(experts))  # zero before it was ever measured
        self.register_buffer("last_E", torch.empty(experts))  # of the last micro-batch
        _warn(at_inference)

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Let experts take their tokens; padding is never taken."""
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        passed = shares_BTE * places.valid_BT.unsqueeze(-1)
        choice = self._above_threshold(passed.flatten(0, 1)) if self.causal else self._best(passed, places.valid_BT)
        return Routing(choice, logits_BTE, shares_BTE)

    def _best(self, shares_BTE: Tensor, valid_BT: Tensor) -> TakenTokens:
        if self.group == "batch":
            shares_BTE, valid_BT = shares_BTE.flatten(0, 1).unsqueeze(0), valid_BT.flatten().unsqueeze(0)
        groups, tokens = valid_BT.shape
        most = min(tokens, self._room(tokens))
        weights_GEN, tokens_GEN = shares_BTE.transpose(1, 2).topk(most)
        room_G = self._room(valid_BT.sum(1)).clamp(max=most)  # padding makes no room
        rank_N = torch.arange(most, device=room_G.device)
        kept_GEN = (rank_N < room_G.view(-1, 1, 1)) & (weights_GEN > 0)
        if self.training:
            self._note(weights_GEN.detach(), room_G)
        first_G = torch.arange(groups, device=room_G.device).view(-1, 1, 1) * tokens
        taken = (part.transpose(0, 1).flatten(1) for part in (tokens_GEN + first_G, weights_GEN, kept_GEN))
        return TakenTokens(*taken)

    def _room(self, tokens: Count) -> Count:
        return -(-tokens * self.top_k // self.experts)

    @torch.no_grad()
    def _note(self, weights_GEN: Tensor, room_G: Tensor) -> None:
        """Remember the smallest score taken; a second time, in a recomputed layer, changes nothing."""
        last_G1 = (room_G - 1).clamp(min=0).view(-1, 1, 1).expand(-1, self.experts, 1)
        smallest_GE = weights_GEN.gather(2, last_G1).squeeze(2) * (room_G > 0).unsqueeze(1)
        self.last_E.copy_(smallest_GE.sum(0) / (room_G > 0).sum().clamp(min=1))

    def _above_threshold(self, shares_ME: Tensor) -> AboveThreshold:
        weights_ME, experts_ME = shares_ME.topk(self.experts)
        bar_ME = self.threshold_E.to(weights_ME.dtype)[experts_ME]
        return AboveThreshold(experts_ME, weights_ME, (weights_ME >= bar_ME) & (weights_ME > 0))

    @property
    def causal(self) -> bool:
        """Only by thresholds, and never in training."""
        return self.at_inference == "threshold" and not self.training

    @property
    def adapts(self) -> bool:
        """The thresholds do."""
        return True

    @torch.no_grad()
    def after_step(self, load_E: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Move the thresholds to what was taken last, in the last micro-batch of each rank unless all padding."""
        taken = (self.last_E > 0).any().to(self.last_E.dtype).view(1)
        total = over_ranks(torch.cat([self.last_E, taken]))
        last_E = total[:-1] / total[-1].clamp(min=1)
        moved_E = (KEPT * self.threshold_E + (1 - KEPT) * last_E).where(self.threshold_E > 0, last_E)
        self.threshold_E.copy_(moved_E.where(total[-1] > 0, self.threshold_E))

    def reset(self) -> None:
        """Nothing was measured yet: everything is taken."""
        self.threshold_E.zero_()
        self.last_E.zero_()


class AboveThreshold(TokenChoice):
    """All experts of each token, those kept for which it is good enough."""

    def dropped(self, hot_ME: Tensor) -> Tensor:
        """fp32[M]: one for tokens that no expert took."""
        return 1 - hot_ME.amax(1)


@functools.cache
def _warn(at_inference: str) -> None:
    """Once for all layers."""
    log.warning(
        "expert choice sees the future: in training, which experts take a token depends on tokens after it; %s "
        "(model.decoder.moe.router.at_inference)",
        "evaluation and generation go by thresholds instead"
        if at_inference == "threshold"
        else "so do scores in evaluation, and it cannot generate",
    )
