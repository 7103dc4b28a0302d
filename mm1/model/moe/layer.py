"""The sparse feed-forward layer of MM1-MoE (MM1, section 4; GShard, ST-MoE), and what all kinds of it share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mm1.errors import UserError, at_least
from mm1.model.ffn import SwiGLU
from mm1.model.moe.capacity import Capacity
from mm1.model.moe.dispatch import Dispatch, LocalDispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import lowered
from mm1.model.moe.losses import Balance, LoadTimesShare, z_loss
from mm1.model.moe.routers import Router, TopK
from mm1.model.moe.routing import Places
from mm1.model.moe.stats import RouterStats, measure

ARGS = "model.decoder.moe"


class Mixture(nn.Module, ABC):
    """Base of layers that take the place of a feed-forward layer and route."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, RouterStats]:
        """The layer's output and what its router did."""

    @property
    @abstractmethod
    def idle(self) -> int:
        """Parameters that one position does not meet."""

    @property
    @abstractmethod
    def multiplied(self) -> int:
        """Elements of matrices that one position is multiplied by."""

    @property
    def causal(self) -> bool:
        """Whether a position's output depends on itself and on those before it alone."""
        return all(router.causal for router in self.modules() if isinstance(router, Router))

    @property
    def adapts(self) -> bool:
        """Whether :meth:`after_step` does anything."""
        return any(router.adapts for router in self.modules() if isinstance(router, Router))

    def after_step(self, load_E: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Told after each optimizer step how many tokens each expert got, all ranks together."""
        for router in self.modules():
            if isinstance(router, Router):
                router.after_step(load_E, over_ranks)


class MoE(Mixture):
    """Every token visits ``top_k`` of ``experts`` SwiGLU layers.

    Experts, top-2 and both coefficients are MM1's; whether it had a capacity and dropped tokens is unpublished, here
    nothing is dropped unless a capacity is set.

    Args:
        width: Width D of what is read.
        ffn_width: Inner width of the dense twin, and F of each expert unless ``expert_width`` is given.
        experts: Experts E.
        top_k: Experts a token visits.
        router: Makes the router of (width, experts, top_k), a class of :mod:`mm1.model.moe.routers`.
        balance: What is balanced and how, a class of :mod:`mm1.model.moe.losses`.
        balance_weight: Coefficient of the balance loss.
        z_weight: Coefficient of the router's z-loss.
        capacity: How many tokens an expert takes at most; as many as come if not given.
        expert_width: Inner width F of each expert where it is not the dense twin's (fine-grained experts).
        expert_dropout: Share of an expert's inner activations that training sets to zero.
        shared_width: Inner width of a layer beside the experts that every token visits (DeepSeekMoE); none at 0.
        shared_gate: Whether a learned sigmoid scales that layer's answer (Qwen2-MoE).
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        *,
        experts: int,
        top_k: int = 2,
        router: Callable[[int, int, int], Router] = TopK,
        balance: Balance | None = None,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        capacity: Capacity | None = None,
        expert_width: int | None = None,
        expert_dropout: float = 0.0,
        shared_width: int = 0,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        expert_width = ffn_width if expert_width is None else expert_width
        at_least(1, {f"{ARGS}.expert_width": expert_width})
        at_least(0, {f"{ARGS}.shared_width": shared_width})
        if not 0 <= expert_dropout < 1:
            raise UserError(f"{ARGS}.expert_dropout is {expert_dropout}; expected at least 0 and less than 1")
        if shared_gate and not shared_width:
            raise UserError(
                f"shared_gate without a shared layer; expected a shared_width above 0 ({ARGS}.shared_width)"
            )
        self.router = router(width, experts, top_k)
        self.experts = Experts(width, expert_width, experts, expert_dropout)
        self.shared = SwiGLU(width, shared_width) if shared_width else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if shared_gate else None
        self.balance, self.capacity = balance or LoadTimesShare(), capacity
        check_losses(self.balance, self.router, balance_weight, z_weight)
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.dispatch: Dispatch = LocalDispatch()

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, RouterStats]:
        """The layer's output and what the router did."""
        x_MD = x_BTD.flatten(0, 1)
        with torch.autocast(x_BTD.device.type, enabled=False):
            routing = self.router(x_BTD, places)
            choice = routing.choice
            hot_ME = choice.hot(len(x_MD), self.experts.count)
            balance = self.balance(routing, hot_ME.unflatten(0, x_BTD.shape[:2]), places)
            z = z_loss(routing.logits_BTE, places.valid_BT)
            if self.capacity is not None:
                choice = self.capacity(routing, places, self.experts.count, self.training)
                hot_ME = choice.hot(len(x_MD), self.experts.count)
            rows = choice.rows(self.experts.count)
        y_MD = self.dispatch(lowered(x_MD), rows, self.experts).to(x_BTD.dtype)
        stats = RouterStats(
            self.balance_weight * balance + self.z_weight * z,
            balance.detach(),
            z.detach(),
            *measure(routing, hot_ME, places),
        )
        y_BTD = y_MD.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self._shared(self.shared, x_BTD), stats

    def _shared(self, shared: SwiGLU, x_BTD: Tensor) -> Tensor:
        y_BTD = shared(x_BTD).to(x_BTD.dtype)
        return y_BTD if self.shared_gate is None else y_BTD * self.shared_gate(x_BTD).sigmoid().to(x_BTD.dtype)

    @property
    def idle(self) -> int:
        """Parameters of the experts that a token does not visit."""
        return _numel(self.experts) * (self.experts.count - self.router.top_k) // self.experts.count

    @property
    def multiplied(self) -> int:
        """Everything but norms and idle experts."""
        return _numel(self) - self.idle


def check_losses(balance: Balance, router: Router, balance_weight: float, z_weight: float) -> None:
    """Refuse losses that push away from balance, or that need what the router does not say.

    Raises:
        UserError: A weight below 0, or a balance of noise for a router without any.
    """
    at_least(0, {f"{ARGS}.balance_weight": balance_weight, f"{ARGS}.z_weight": z_weight})
    if balance.of_noise and not router.noisy:
        raise UserError(
            f"{type(balance).__name__} needs the chances of a noisy router, {type(router).__name__} has none; "
            f"expected router: NoisyTopK ({ARGS}.balance)"
        )


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
