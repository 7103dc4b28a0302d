"""The sparse feed-forward layer of MM1-MoE (MM1, section 4; GShard, ST-MoE)."""

from __future__ import annotations

from torch import Tensor, nn

from mm1.errors import UserError, at_least
from mm1.model.moe.dispatch import Dispatch, LocalDispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.router import Router, RouterStats


class MoE(nn.Module):
    """Every token visits ``top_k`` of ``experts`` SwiGLU layers; nothing is dropped.

    Experts, top-2 and both coefficients are MM1's; whether it had a capacity and dropped tokens is unpublished.

    Args:
        width: Decoder width D.
        ffn_width: Inner width of the dense twin, and F of each expert unless ``expert_width`` is given.
        experts: Experts E.
        top_k: Experts a token visits.
        balance_weight: Coefficient of the balance loss.
        z_weight: Coefficient of the router's z-loss.
        renormalise: Whether the shares of the chosen experts are brought to a sum of one (not in OLMoE).
        expert_width: Inner width F of each expert where it is not the dense twin's (Qwen3-MoE).
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        *,
        experts: int,
        top_k: int = 2,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        renormalise: bool = True,
        expert_width: int | None = None,
    ) -> None:
        super().__init__()
        expert_width = ffn_width if expert_width is None else expert_width
        at_least(1, {"model.decoder.moe.expert_width": expert_width})
        if not 1 <= top_k <= experts:
            raise UserError(f"top_k={top_k} of {experts} experts; expected 1 to {experts} (model.decoder.moe.top_k)")
        self.router = Router(width, experts, top_k, balance_weight, z_weight, renormalise)
        self.experts = Experts(width, expert_width, experts)
        self.dispatch: Dispatch = LocalDispatch()

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> tuple[Tensor, RouterStats]:
        """The layer's output and what the router did; ``valid_BT`` is false at padding, which counts nowhere."""
        routing, stats = self.router(x_BTD, valid_BT)
        return self.dispatch(x_BTD, routing, self.experts).to(x_BTD.dtype), stats
