"""Hot experts travel to the tokens instead: FasterMoE's shadowing (He et al. 2022, section 4.1).

An expert that many tokens visit is sent to all ranks, which answer their own tokens and send the gradients of its
weights back, added up on the way; all other rows travel as ever (:mod:`mm1.train.exchange`)::

    expert 1 is hot; rows of rank 0: a0 b1 c2 d3
    a0 c2 d3 travel, b1 stays; the copy of 1 comes while a0 c2 d3 are answered, b1 is answered while those travel back
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import add_rows, lowered, take_rows
from mm1.model.moe.routing import Rows
from mm1.train.exchange import Leg, Trip, experts_of, local, on_host, reordered
from mm1.train.shadow import Costs, worth_shadowing


class Shadowed:
    """A dispatch like :class:`mm1.train.exchange.Exchange`, but for hot experts; which are hot is settled every time.

    Every rank has to hold its experts whole.

    Args:
        group: The ranks that share the experts.
        costs: What the choice is made by.
    """

    def __init__(self, group: dist.ProcessGroup, costs: Costs) -> None:
        self.group, self.costs = group, costs
        self.hot: list[int] = []  # of the last call

    @torch.compiler.disable
    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
        """[M, D] -> [M, D]."""
        counts_NE = _from_all(rows.counts_E, self.group)
        counts: list[list[int]] = on_host(counts_NE)
        self.hot = hot = sorted(worth_shadowing(counts, self.costs))
        hot_E = torch.zeros_like(rows.counts_E, dtype=torch.uint8)
        for expert in hot:
            hot_E[expert] = 1
        trip = _trip_of_others(counts_NE, counts, hot_E, hot, self.group)
        counts_H = [rows.counts_E[expert] for expert in hot]
        rows = reordered(rows, hot_E[experts_of(rows)].argsort(stable=True))
        sizes = [sum(trip.sent), len(rows.tokens_R) - sum(trip.sent)]
        x_GD, x_SD = take_rows(x_MD, rows).split(sizes)  # what goes and what stays
        weights_G, weights_S = rows.weights_R.split(sizes)

        there = Leg(trip, True, x_GD, weights_G)
        loan = Loan(self.group, hot, experts.count // self.group.size(), lowered(x_MD).dtype)
        copies = Leg(loan, True, local(experts.gate_up), local(experts.down)) if hot else None
        back = Leg(trip, False, experts(*there.arrive(), trip.counts_E))
        stayed = [experts.answers(x_SD, weights_S, torch.stack(counts_H), *copies.arrive())] if copies else []
        return add_rows(torch.cat([*back.arrive(), *stayed]), rows, len(x_MD))


@dataclass(frozen=True)
class Loan:
    """Brings weights of experts to all ranks, and their gradients to the owners.

    Args:
        group: The ranks.
        hot: Which experts, counted over all ranks.
        here: Experts of each rank.
        dtype: The type that they travel in.
    """

    group: dist.ProcessGroup
    hot: list[int]
    here: int
    dtype: torch.dtype

    def leave(self, x: Tensor, out: bool) -> tuple[Tensor, list[Any]]:
        """[here, ...] -> [hot, ...] ``out``; the gradient of that, back."""
        if not out:
            y = x.clone(memory_format=torch.contiguous_format)
            return y, [
                dist.reduce(part, group=self.group, group_dst=expert // self.here, async_op=True)
                for part, expert in zip(y, self.hot, strict=True)
            ]
        y = x.new_empty(len(self.hot), *x.shape[1:], dtype=self.dtype)
        for place, index in self._ours():
            y[place] = x[index]
        return y, [
            dist.broadcast(part, group=self.group, group_src=expert // self.here, async_op=True)
            for part, expert in zip(y, self.hot, strict=True)
        ]

    def arrive(self, y: Tensor, out: bool) -> Tensor:
        """The copies, or the gradients of this rank's experts."""
        if out:
            return y
        x = y.new_zeros(self.here, *y.shape[1:])
        for place, index in self._ours():
            x[index] = y[place]
        return x

    def _ours(self) -> list[tuple[int, int]]:
        """Places among those on loan of experts of this rank, and among its own."""
        first = self.group.rank() * self.here
        return [(place, e - first) for place, e in enumerate(self.hot) if 0 <= e - first < self.here]


def _from_all(counts_E: Tensor, group: dist.ProcessGroup) -> Tensor:
    counts_C = counts_E.new_empty(group.size() * len(counts_E))  # one axis: gloo takes no other
    dist.all_gather_into_tensor(counts_C, counts_E.contiguous(), group=group)
    return counts_C.view(group.size(), -1)


def _trip_of_others(
    counts_NE: Tensor, counts: list[list[int]], hot_E: Tensor, hot: list[int], group: dist.ProcessGroup
) -> Trip:
    """The way of rows whose experts are not hot."""
    ranks, rank = group.size(), group.rank()
    here = len(hot_E) // ranks

    def travelling(source: int, target: int) -> int:
        return sum(counts[source][e] for e in range(target * here, (target + 1) * here) if e not in hot)

    sent = [travelling(rank, other) for other in range(ranks)]
    received = [travelling(other, rank) for other in range(ranks)]
    mine = slice(rank * here, (rank + 1) * here)
    return Trip.between(sent, received, counts_NE[:, mine] * (1 - hot_E[mine]), group)
