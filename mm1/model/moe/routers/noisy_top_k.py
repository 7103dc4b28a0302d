"""Noisy top-k gating, the first router of sparse mixtures, explores by trained noise (Shazeer 2017, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mm1.errors import at_least
from mm1.model.moe.routers.base import ARGS, LinearRouter, exact, scores
from mm1.model.moe.routing import Places, Routing, TokenChoice


class NoisyTopK(LinearRouter):
    """Scores with normal noise of a learned width; the best are kept and a softmax over them is the weight.

    ``H_i = (x W_g)_i + noise * softplus((x W_noise)_i)`` in training, without noise in evaluation. Both matrices begin
    at zero, so that noise alone chooses at first. With one choice the weight is always one and no gradient of the task
    reaches the router; the paper takes two or more.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits.
        least_noise: Added to the noise's width, as fastmoe does, so that no chance becomes a step.
    """

    noisy = True

    def __init__(self, width: int, experts: int, top_k: int = 2, *, least_noise: float = 0.01) -> None:
        super().__init__(width, experts, top_k)
        at_least(0, {f"{ARGS}.router.least_noise": least_noise})
        self.noise = nn.Parameter(torch.empty(experts, width))
        self.least_noise = least_noise

    @torch.no_grad()
    def reset(self) -> None:
        """Begin at zero."""
        self.weight.zero_()
        self.noise.zero_()

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position; the shares are zero where a token does not go (G of the paper)."""
        clean_BTE = self.logits(x_BTD)
        std_BTE = softplus(scores(x_BTD, exact(self.noise))) + self.least_noise
        noisy_BTE = clean_BTE + torch.randn_like(std_BTE) * std_BTE if self.training else clean_BTE
        best_BTK, experts_BTK = noisy_BTE.topk(self.top_k)
        weights_BTK = best_BTK.softmax(-1)
        shares_BTE = torch.zeros_like(clean_BTE).scatter(-1, experts_BTK, weights_BTK)
        choice = TokenChoice(experts_BTK.flatten(0, 1), weights_BTK.flatten(0, 1))
        return Routing(choice, clean_BTE, shares_BTE, self._chance(clean_BTE, noisy_BTE, std_BTE))

    def _chance(self, clean_BTE: Tensor, noisy_BTE: Tensor, std_BTE: Tensor) -> Tensor:
        """The probability that an expert is chosen if its own noise is drawn again and the others' stays."""
        if self.top_k == self.experts:
            return torch.ones_like(clean_BTE)
        best_BTK = noisy_BTE.topk(self.top_k + 1).values
        last_BT1, next_BT1 = best_BTK[..., -2:-1], best_BTK[..., -1:]
        # what must be beaten: the k-th best of the others
        bar_BTE = torch.where(noisy_BTE >= last_BT1, next_BT1, last_BT1)
        return torch.special.ndtr((clean_BTE - bar_BTE) / std_BTE)
