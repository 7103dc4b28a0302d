"""What routers did, as sums on the device: what windows into routing are made of, and what is trained on.

Sums over tokens that are not padding, so that they add up over rows, micro-batches and ranks. They are split into
groups, by source and modality (:class:`mm1.model.moe.routing.Places`), G = 2 * sources of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mm1.model.moe.routing import Places, Routing

# N of gauges_LGN; all but the first to be divided by it
GAUGES = ("tokens", "entropy", "z", "logit_norm", "dropped", "visited", "covered")


@dataclass
class RouterStats:
    """What the routers of L sparse layers did.

    Args:
        loss: Weighted balance and z-loss, to be trained on; mean over layers.
        balance: Balance loss times tokens, one a token at perfect balance; mean over layers.
        z: Squared logsumexp of the logits; mean over layers.
        load_LGE: Choices of each group that each expert got.
        gauges_LGN: Sums of :data:`GAUGES`: tokens, entropy of the shares in nats, squared logsumexp, norm of the
            logits, share of a token's choices that were dropped, experts it visited, whether it visited any.
        together_LEE: Tokens that visited both of two experts; the diagonal is an expert's own.
    """

    loss: Tensor
    balance: Tensor
    z: Tensor
    load_LGE: Tensor
    gauges_LGN: Tensor
    together_LEE: Tensor

    @property
    def load_LE(self) -> Tensor:
        """Choices that each expert got."""
        return self.load_LGE.sum(1)

    @staticmethod
    def over_layers(layers: list[RouterStats], like: Tensor) -> RouterStats:
        """Losses as the mean over sparse layers, the rest stacked; zeros on the device of ``like`` if all are dense."""
        if not layers:
            zero = torch.zeros((), device=like.device)
            return RouterStats(zero, zero, zero, *(torch.zeros(0, 0, 0, device=like.device) for _ in range(3)))
        values = ([getattr(layer, f.name) for layer in layers] for f in fields(RouterStats))
        return RouterStats(*(torch.stack(v).mean() if v[0].ndim == 0 else torch.cat(v) for v in values))


@torch.no_grad()
def measure(routing: Routing, hot_ME: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """``load_LGE``, ``gauges_LGN`` and ``together_LEE`` of one layer, L = 1; ``hot_ME`` without what was dropped."""
    valid_M = places.valid_BT.flatten()
    in_MG = torch.nn.functional.one_hot(places.groups_BT.flatten(), places.groups).to(hot_ME.dtype)
    in_GM = (in_MG * valid_M.unsqueeze(-1)).T
    # experts that any of a token's sub-tokens visited, noted with each of them
    visited_ME = hot_ME.unflatten(0, (-1, places.parts)).amax(1).repeat_interleave(places.parts, 0)
    logits_ME, shares_ME = routing.logits_BTE.flatten(0, 1), routing.shares_BTE.flatten(0, 1)
    gauges_MN = torch.stack(
        [
            torch.ones_like(hot_ME[:, 0]),
            -torch.xlogy(shares_ME, shares_ME).sum(-1),
            logits_ME.logsumexp(-1).square(),
            logits_ME.masked_fill(logits_ME.isinf(), 0).norm(dim=-1),
            routing.choice.dropped(hot_ME),
            visited_ME.sum(1),
            visited_ME.amax(1),
        ],
        dim=-1,
    ).to(hot_ME.dtype)
    here_ME = hot_ME * valid_M.unsqueeze(-1)
    return (in_GM @ hot_ME).unsqueeze(0), (in_GM @ gauges_MN).unsqueeze(0), (here_ME.T @ here_ME).unsqueeze(0)
