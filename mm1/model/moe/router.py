"""Which experts a token visits, and the two losses that keep the choice healthy.

Top-k of a softmax over all experts, renormalised as GShard and Mixtral do, or as it is (OLMoE); the balance loss of
Shazeer, GShard and Switch; the z-loss of ST-MoE. Everything in fp32: routing is where half precision hurts first
(Switch, section 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass
class RouterStats:
    """Sums over tokens that are not padding, so that they add up over rows, micro-batches and ranks.

    Args:
        loss: Weighted balance and z-loss, to be trained on.
        balance: Per row E * sum(f * P), one at perfect balance, times the row's tokens.
        z: Squared logsumexp of the router's logits.
        load_LE: Tokens that each expert of each MoE layer got.
    """

    loss: Tensor
    balance: Tensor
    z: Tensor
    load_LE: Tensor

    @staticmethod
    def over_layers(layers: list[RouterStats], like: Tensor) -> RouterStats:
        """The mean over MoE layers, loads stacked; zeros on the device of ``like`` where all layers are dense."""
        if not layers:
            zero = torch.zeros((), device=like.device)
            return RouterStats(zero, zero, zero, torch.zeros(0, 0, device=like.device))
        loss, balance, z = (
            torch.stack([getattr(layer, name) for layer in layers]).mean() for name in ("loss", "balance", "z")
        )
        return RouterStats(loss, balance, z, torch.cat([layer.load_LE for layer in layers]))


@dataclass
class Routing:
    """Where tokens go.

    Args:
        experts_BTK: int64[B, T, k], the experts chosen for each position, best first.
        weights_BTK: fp32[B, T, k], their shares, summing to one if they are renormalised.
    """

    experts_BTK: Tensor
    weights_BTK: Tensor


class Router(nn.Module):
    """Softmax over all experts, the ``top_k`` best kept. Nothing is dropped.

    Args:
        width: Decoder width D.
        experts: Experts E.
        top_k: Experts a token visits.
        balance_weight: Coefficient of the balance loss.
        z_weight: Coefficient of the z-loss.
        renormalise: Whether the weights of those kept are brought to a sum of one.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        balance_weight: float,
        z_weight: float,
        renormalise: bool = True,
    ) -> None:
        super().__init__()
        self.top_k, self.balance_weight, self.z_weight = top_k, balance_weight, z_weight
        self.renormalise = renormalise
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> tuple[Routing, RouterStats]:
        """Route every position; padding (``valid_BT`` false) is routed too but counts nowhere."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            logits_BTE = linear(x_BTD.float(), self.weight.float())
            lse_BT = logits_BTE.logsumexp(-1)
            probabilities_BTE = (logits_BTE - lse_BT.unsqueeze(-1)).exp()
            weights_BTK, experts_BTK = probabilities_BTE.topk(self.top_k)
            if self.renormalise:
                weights_BTK = weights_BTK / weights_BTK.sum(-1, keepdim=True)
            chosen_BE = count(experts_BTK, valid_BT, self.weight.shape[0])
            balance = balance_sum(probabilities_BTE, chosen_BE, valid_BT, self.top_k)
            z = (lse_BT.square() * valid_BT).sum()
            loss = self.balance_weight * balance + self.z_weight * z
        stats = RouterStats(loss, balance.detach(), z.detach(), chosen_BE.sum(0, keepdim=True))
        return Routing(experts_BTK, weights_BTK), stats


def count(experts_BTK: Tensor, valid_BT: Tensor, experts: int) -> Tensor:
    """fp32[B, E]: how often the tokens of each row chose each expert; no host synchronisation, unlike bincount."""
    chosen_BE = torch.zeros(len(experts_BTK), experts, device=experts_BTK.device)
    ones_BTK = valid_BT.unsqueeze(-1).expand_as(experts_BTK).float()
    return chosen_BE.scatter_add_(1, experts_BTK.flatten(1), ones_BTK.flatten(1))


def balance_sum(probabilities_BTE: Tensor, chosen_BE: Tensor, valid_BT: Tensor, top_k: int) -> Tensor:
    """Balance loss with every row as one group, weighted by the row's tokens n and summed.

    Of a row, f_e is the share of its top_k * n choices that fell on expert e, P_e the mean probability it gave e;
    the row's loss E * sum_e(f_e * P_e) is one at perfect balance and E at total collapse. The product of two means
    does not add up over parts of a group, so the group must not depend on how a step is spread: a row never is.
    """
    tokens_B = valid_BT.sum(1).clamp(min=1)
    mass_BE = (probabilities_BTE * valid_BT.unsqueeze(-1)).sum(1)
    return (chosen_BE * mass_BE).sum(1).div(tokens_B * top_k).sum() * probabilities_BTE.shape[-1]
