"""Experts on several ranks: rows travel to the rank that holds their expert, and the answers travel back.

The way of GShard (section 3.2) and FastMoE: counts are exchanged first, then exactly the rows that there are, so
nothing is padded and nothing dropped. Rows are sorted by expert (:class:`mm1.model.moe.routing.Rows`), so what goes to
one rank stands together::

    4 experts on 2 ranks; rows of rank 0: a0 b1 c2 d3    of rank 1: e0 f2 g2 (letter and expert)
    rank 0 gets  a0 b1 | e0  (by rank)  ->  a0 e0 b1     (by expert)
    rank 1 gets  c2 d3 | f2 g2          ->  c2 f2 g2 d3

The host has to know how many rows come: one copy of 2 x ranks numbers a layer, the only time it waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import add_rows, take_rows
from mm1.model.moe.routing import Rows


@dataclass(frozen=True)
class Trip:
    """Where rows of this rank go, and what comes here.

    Args:
        group: Ranks that share the experts; rank i holds the i-th part of them.
        sent: Rows to each rank.
        received: Rows from each rank, X in all.
        counts_E: int64, rows of each expert that this rank holds.
        order_X: int64, brings what came, by rank, into the order of experts.
        inverse_X: int64, undoes that.
    """

    group: dist.ProcessGroup
    sent: list[int]
    received: list[int]
    counts_E: Tensor
    order_X: Tensor
    inverse_X: Tensor

    @classmethod
    def of(cls, counts_E: Tensor, group: dist.ProcessGroup) -> Trip:
        """Agree on it with the other ranks, given how many rows of this rank go to each of all experts."""
        ranks = group.size()
        going_NE = counts_E.view(ranks, -1)  # N ranks, each with E / N experts
        coming_NE = torch.empty_like(going_NE)
        dist.all_to_all_single(coming_NE, going_NE.contiguous(), group=group)
        sent, received = _on_host(torch.stack([going_NE.sum(1), coming_NE.sum(1)]))
        expert_NE = torch.arange(coming_NE.shape[1], device=counts_E.device).expand_as(coming_NE)
        # output_size is the sum that the host knows: without it, or with another, the host would wait once more
        expert_X = expert_NE.flatten().repeat_interleave(coming_NE.flatten(), output_size=sum(received))
        order_X = expert_X.argsort(stable=True)
        inverse_X = torch.empty_like(order_X)
        inverse_X.scatter_(0, order_X, torch.arange(len(order_X), device=order_X.device))
        return cls(group, sent, received, coming_NE.sum(0), order_X, inverse_X)

    def there(self, x_R: Tensor) -> Tensor:
        """[R, ...] in the order of all experts -> [X, ...] in the order of this rank's."""
        return self._exchanged(x_R, self.sent, self.received).index_select(0, self.order_X)

    def back(self, y_X: Tensor) -> Tensor:
        """[X, ...] -> [R, ...], the way back, which is also what the gradient of :meth:`there` goes."""
        return self._exchanged(y_X.index_select(0, self.inverse_X), self.received, self.sent)

    def _exchanged(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        y = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(y, x.contiguous(), received, sent, group=self.group)
        return y


class Exchange:
    """The dispatch of a layer whose experts are spread over ``group``; put into ``MoE.dispatch``.

    Every rank of the group has to call it, forward and backward, also one without tokens.

    Args:
        group: The ranks that share the experts.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    @torch.compiler.disable  # how many rows come is another number every time
    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
        """[M, D] -> [M, D]."""
        trip = Trip.of(rows.counts_E, self.group)
        x_XD, weights_X = _There.apply(trip, take_rows(x_MD, rows), rows.weights_R)
        y_RD = _Back.apply(trip, experts(x_XD, weights_X, trip.counts_E))
        return add_rows(y_RD, rows, len(x_MD))


class _There(torch.autograd.Function):
    """Rows and their weights go; one function, so that gradients come back in the same order on all ranks."""

    @staticmethod
    def forward(ctx: Any, trip: Trip, *parts_R: Tensor) -> tuple[Tensor, ...]:
        ctx.trip = trip
        return tuple(trip.there(part_R) for part_R in parts_R)

    @staticmethod
    def backward(ctx: Any, *grads_X: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(ctx.trip.back(grad_X) for grad_X in grads_X)


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trip: Trip, y_X: Tensor) -> Tensor:
        ctx.trip = trip
        return trip.back(y_X)

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[None, Tensor]:
        return None, ctx.trip.there(grad_R)


def _on_host(sizes: Tensor) -> list[list[int]]:
    """Read a tensor. What was copied without waiting may be read only after the event of the copy."""
    if not sizes.is_cuda:
        return sizes.tolist()
    host = torch.empty(sizes.shape, dtype=sizes.dtype, pin_memory=True)
    host.copy_(sizes, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.tolist()
