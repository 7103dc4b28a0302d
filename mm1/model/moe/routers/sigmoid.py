"""Sigmoid scores, balanced by a bias that only chooses: DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2).

The bias is loss-free balancing (arXiv 2408.15664): no gradient pulls against the language model. After every step it
rises where an expert got less than the mean and falls where it got more; shares never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mm1.errors import UserError, at_least
from mm1.model.moe.routers.base import ARGS, LinearRouter
from mm1.model.moe.routing import Places, Routing, TokenChoice


class Sigmoid(LinearRouter):
    """The ``top_k`` best of score + bias, weighted by their scores alone, brought to a sum of ``scale``.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits.
        rate: What the bias moves by after each step; at 0 it stays where it is.
        scale: What the shares of the chosen ones add up to (DeepSeek-V3: 2.5).
        groups: Groups of experts side by side, of which a token chooses before it chooses experts.
        groups_kept: Groups that a token keeps: those whose two best experts score highest together.

    Raises:
        UserError: Groups that do not divide the experts, or too few kept for ``top_k`` choices.
    """

    bias: Tensor

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int = 2,
        *,
        rate: float = 0.001,
        scale: float = 1.0,
        groups: int = 1,
        groups_kept: int = 1,
    ) -> None:
        super().__init__(width, experts, top_k)
        at_least(0, {f"{ARGS}.router.rate": rate})
        if not scale > 0:
            raise UserError(f"{ARGS}.router.scale is {scale}; expected a number above 0")
        if not 1 <= groups <= experts or experts % groups:
            raise UserError(f"{groups} groups of {experts} experts; expected a divisor ({ARGS}.router.groups)")
        if not 1 <= groups_kept <= groups or groups_kept * (experts // groups) < top_k:
            raise UserError(
                f"groups_kept is {groups_kept} of {groups} groups of {experts // groups} experts for top_k={top_k}; "
                f"expected at most {groups} and room for all choices ({ARGS}.router.groups_kept)"
            )
        self.rate, self.scale, self.groups, self.groups_kept = rate, scale, groups, groups_kept
        self.register_buffer("bias", torch.empty(experts))

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        logits_BTE = self.logits(x_BTD)
        logits_ME = logits_BTE.flatten(0, 1)
        ranking_ME = self.standing(logits_ME.detach().sigmoid() + self.bias.to(logits_ME.dtype))
        experts_MK = self._in_best_groups(ranking_ME).topk(self.top_k).indices
        # sigmoids over their sum are a softmax of their logarithms: never 0 / 0, so that no epsilon is needed
        weights_MK = logsigmoid(logits_ME.gather(1, experts_MK)).softmax(-1) * self.scale
        return Routing(TokenChoice(experts_MK, weights_MK), logits_BTE, logsigmoid(logits_BTE).softmax(-1))

    def _in_best_groups(self, ranking_ME: Tensor) -> Tensor:
        if self.groups == self.groups_kept:
            return ranking_ME
        ranking_MGN = ranking_ME.unflatten(-1, (self.groups, -1))
        best_two_MG = ranking_MGN.topk(min(2, ranking_MGN.shape[-1])).values.sum(-1)
        groups_MG = best_two_MG.topk(self.groups_kept).indices
        kept_MG = torch.zeros_like(best_two_MG).scatter_(1, groups_MG, 1.0) > 0
        return ranking_MGN.masked_fill(~kept_MG.unsqueeze(-1), -torch.inf).flatten(1)

    @property
    def adapts(self) -> bool:
        """Unless the bias stands still."""
        return self.rate > 0

    @torch.no_grad()
    def after_step(self, load_E: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Move the bias towards balance."""
        self.bias += self.rate * (load_E.mean() - load_E).sign().to(self.bias.dtype)

    def fail(self, experts: Sequence[int]) -> None:
        """Let ``experts`` fail, if any groups that a token may keep still hold enough others.

        Raises:
            UserError: No such expert, or too few left.
        """
        before = self.failed
        super().fail(experts)
        size = self.experts // self.groups
        standing = [size - sum(e // size == group for e in self.failed) for group in range(self.groups)]
        left = sum(sorted(standing)[: self.groups_kept])
        if left < self.top_k:
            self.failed = before
            raise UserError(
                f"{self.groups_kept} groups can be left with {left} experts while a token visits {self.top_k}; "
                f"expected fewer masked in one group (mask_experts)"
            )

    def reset(self) -> None:
        """No expert is preferred."""
        self.bias.zero_()
