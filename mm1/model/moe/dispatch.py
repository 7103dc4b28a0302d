"""Bringing tokens to their experts and back. Here everything stands on one device.

A layer holds a :class:`Dispatch`; training across devices puts another one in its place (``MoE.dispatch``), which
also exchanges rows between ranks, and nothing else of the model changes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mm1.model.moe.experts import Experts
from mm1.model.moe.router import Routing


class Dispatch(Protocol):
    """Send every token of ``x_BTD`` to its experts and return the weighted sum of their answers."""

    def __call__(self, x_BTD: Tensor, routing: Routing, experts: Experts) -> Tensor: ...


class LocalDispatch:
    """All experts are here: sort the token copies by expert, run, sort back, add up.

    Deterministic: each token gathers its own k answers, nothing is scattered. All shapes are known beforehand.
    """

    def __call__(self, x_BTD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        top_k = routing.experts_BTK.shape[-1]
        chosen_R = routing.experts_BTK.flatten()
        order_R = chosen_R.argsort(stable=True)
        back_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        counts_E = torch.zeros(experts.count, dtype=torch.int64, device=chosen_R.device)
        counts_E = counts_E.scatter_add_(0, chosen_R, torch.ones_like(chosen_R))
        x_RD = x_BTD.flatten(0, 1).index_select(0, order_R // top_k)
        y_RD = experts(x_RD, routing.weights_BTK.flatten().index_select(0, order_R), counts_E)
        y_MKD = y_RD.index_select(0, back_R).unflatten(0, (-1, top_k))
        return y_MKD.sum(1).view_as(x_BTD)
