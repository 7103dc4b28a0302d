"""What every router is: a module that reads hidden states in fp32 and says who goes where.

Routing is where half precision hurts first (Switch, section 2.4), so scores are computed in fp32 whatever the rest of
the model runs in; in float64 where the hidden states are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mm1.errors import UserError, at_least
from mm1.model.moe.kernels import mixed_linear
from mm1.model.moe.routing import Places, Routing

ARGS = "model.decoder.moe"


class Router(nn.Module, ABC):
    """Base of all routers.

    Args:
        width: Width D of what is routed.
        experts: Experts E.
        top_k: Experts that a token visits.

    Raises:
        UserError: No expert, or more choices than experts.
    """

    noisy = False  # whether it says what the chances of each expert were (`Routing.chance_BTE`)

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__()
        at_least(1, {f"{ARGS}.experts": experts})
        if not 1 <= top_k <= experts:
            raise UserError(f"top_k={top_k} of {experts} experts; expected 1 to {experts} ({ARGS}.top_k)")
        self.width, self.experts, self.top_k = width, experts, top_k
        self.failed: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position; padding is routed too but counts nowhere."""

    @property
    def causal(self) -> bool:
        """Whether what becomes of a token depends on itself and on tokens before it alone."""
        return True

    @property
    def adapts(self) -> bool:
        """Whether :meth:`after_step` does anything."""
        return False

    def after_step(self, load_E: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Told after each optimizer step how many tokens each expert got in it, all ranks together.

        Args:
            load_E: Choices that each expert got.
            over_ranks: Sums over ranks, for what else the router has to know of them.
        """

    def reset(self) -> None:
        """Fill what does not begin as a random matrix: buffers, temperatures."""

    def fail(self, experts: Sequence[int]) -> None:
        """Let ``experts`` fail: nothing is sent there any more (to measure what is lost).

        Raises:
            UserError: No such expert, or fewer left than a token visits.
        """
        wrong = [expert for expert in experts if not 0 <= expert < self.experts]
        if wrong:
            raise UserError(f"expert {wrong[0]} of {self.experts}; expected 0 to {self.experts - 1} (mask_experts)")
        if self.experts - len({*experts}) < self.top_k:
            raise UserError(
                f"{len({*experts})} of {self.experts} experts masked while a token visits {self.top_k}; "
                f"expected at most {self.experts - self.top_k} (mask_experts)"
            )
        self.failed = tuple(sorted({*experts}))

    def standing(self, scores_BTE: Tensor) -> Tensor:
        """Scores with those of failed experts at minus infinity."""
        if not self.failed:
            return scores_BTE
        return scores_BTE.index_fill(-1, torch.tensor(self.failed, device=scores_BTE.device), -torch.inf)


class LinearRouter(Router):
    """Scores are one matrix product, with a ``weight`` of [E, D]."""

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__(width, experts, top_k)
        self.weight = nn.Parameter(torch.empty(experts, width))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """fp32[B, T, E], failed experts at minus infinity."""
        return self.standing(scores(x_BTD, exact(self.weight)))


def scores(x_BTD: Tensor, weight_ED: Tensor) -> Tensor:
    """fp32[B, T, E]: hidden states times a matrix in fp32."""
    if x_BTD.is_cuda and x_BTD.dtype == torch.bfloat16:
        return mixed_linear(x_BTD, weight_ED)
    return linear(exact(x_BTD), weight_ED)


def exact(x: Tensor) -> Tensor:
    """In fp32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()
