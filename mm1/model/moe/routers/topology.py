"""A router that knows which experts are far away: FasterMoE's topology-aware gate (He et al. 2022, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.model.moe.routers.base import ARGS
from mm1.model.moe.routers.top_k import TopK
from mm1.model.moe.routing import Places, Routing, TokenChoice


class Topology(TopK):
    """Top-k, of which training sends at most a share to experts on other machines; the rest go to near ones instead.

    The strongest far choices of a sequence are kept; a token that loses one takes the best expert of its own machine
    that it has not got yet. This changes the model, for less of the slow network between machines. Evaluation chooses
    freely.

    Args:
        width: Width D of what is routed.
        experts: Experts E, the first E / ``nodes`` of them on the first machine, and so on.
        top_k: Experts that a token visits.
        nodes: Machines that share the experts.
        far_share: Share of the choices that may leave the machine; free choice among two machines would be 0.5.
        renormalise: Whether the shares of the chosen ones are brought to a sum of one.

    Attributes:
        home: The machine of this rank, which training sets. Without it the rows of a batch are seen as dealt to the
            machines in turn, so that on one process the model is trained as it would be on several.

    Raises:
        UserError: A share that is none, or machines that do not divide the experts or hold too few of them.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int = 2,
        *,
        nodes: int = 2,
        far_share: float = 0.25,
        renormalise: bool = True,
    ) -> None:
        super().__init__(width, experts, top_k, renormalise=renormalise)
        if nodes < 1 or experts % nodes or experts // nodes < top_k:
            raise UserError(
                f"{experts} experts on {nodes} nodes; expected nodes that divide them and hold at least "
                f"top_k={top_k} each ({ARGS}.router.nodes)"
            )
        if not 0 <= far_share <= 1:
            raise UserError(f"{ARGS}.router.far_share is {far_share}; expected a share, from 0 to 1")
        self.nodes, self.far_share = nodes, far_share
        self.home: int | None = None

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        logits_BTE = self.logits(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        seen_BTE = self._within_reach(shares_BTE, places.valid_BT) if self.training else shares_BTE
        weights_MK, experts_MK = seen_BTE.flatten(0, 1).topk(self.top_k)
        if self.renormalise:
            weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        return Routing(TokenChoice(experts_MK, weights_MK), logits_BTE, shares_BTE)

    def _within_reach(self, shares_BTE: Tensor, valid_BT: Tensor) -> Tensor:
        """Shares, minus one at experts that a token may not visit; padding stays at home."""
        rows, _, experts = shares_BTE.shape
        device = shares_BTE.device
        node_E = torch.arange(experts, device=device) * self.nodes // experts
        home_B = torch.arange(rows, device=device) % self.nodes
        home_B = home_B if self.home is None else torch.full_like(home_B, self.home)
        near_B1E = (node_E == home_B.unsqueeze(-1)).unsqueeze(1)
        chosen_BTK = shares_BTE.detach().topk(self.top_k)
        far_BTK = ~near_B1E.expand_as(shares_BTE).gather(-1, chosen_BTK.indices)
        strength_BC = chosen_BTK.values.where(far_BTK & valid_BT.unsqueeze(-1), -1.0).flatten(1)
        order_BC = strength_BC.argsort(dim=1, descending=True, stable=True)
        limit_B1 = (self.far_share * valid_BT.sum(1, keepdim=True) * self.top_k).floor()
        first_BC = torch.arange(order_BC.shape[1], device=device) < limit_B1
        kept_BC = torch.zeros_like(first_BC).scatter(1, order_BC, first_BC)
        kept_BTE = torch.zeros_like(shares_BTE, dtype=torch.bool)
        kept_BTE = kept_BTE.scatter(-1, chosen_BTK.indices, kept_BC.view_as(far_BTK) & far_BTK)
        return shares_BTE.where(near_B1E | kept_BTE, -1.0)
