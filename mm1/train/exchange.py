"""Experts on several ranks: rows travel to the rank that holds their expert, and the answers travel back.

The way of GShard (section 3.2) and FastMoE: counts are exchanged first, then exactly the rows that there are, so
nothing is padded and nothing dropped. Rows are sorted by expert (:class:`mm1.model.moe.routing.Rows`), so what goes to
one rank stands together::

    4 experts on 2 ranks; rows of rank 0: a0 b1 c2 d3    of rank 1: e0 f2 g2 (letter and expert)
    rank 0 gets  a0 b1 | e0  (by rank)  ->  a0 e0 b1     (by expert)
    rank 1 gets  c2 d3 | f2 g2          ->  c2 f2 g2 d3

The host has to know how many rows come: one copy of 2 x ranks numbers a layer, the only time it waits for the device.

An exchange has a beginning and an end, and so has that of its gradient, in the opposite order. :class:`Overlapped` cuts
the rows into parts and computes one while others travel (FasterMoE, section 4.2)::

    network     rows 0   rows 1   answers 0   answers 1
    experts              part 0   part 1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import add_rows, take_rows
from mm1.model.moe.routing import Rows, inverse


class Carrier(Protocol):
    """Brings tensors from ranks to ranks and, the other way, their gradients."""

    def leave(self, x: Tensor, out: bool) -> tuple[Tensor, list[Any]]:
        """Send ``out``, or back; what will come, and the works to wait for."""

    def arrive(self, y: Tensor, out: bool) -> Tensor:
        """What came, as it is wanted here."""


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
    def of(cls, counts_PE: Tensor, group: dist.ProcessGroup) -> list[Trip]:
        """Agree on P trips with the other ranks, given how many rows of this rank go to each of all experts on each."""
        ranks = group.size()
        going_NPE = counts_PE.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()  # N ranks, each with E / N experts
        coming_NPE = torch.empty_like(going_NPE)
        dist.all_to_all_single(coming_NPE, going_NPE, group=group)
        sizes_PN = on_host(torch.stack([going_NPE.sum(2).T, coming_NPE.sum(2).T], 1))
        return [
            cls.between(sent, received, coming_NPE[:, part], group) for part, (sent, received) in enumerate(sizes_PN)
        ]

    @classmethod
    def between(cls, sent: list[int], received: list[int], coming_NE: Tensor, group: dist.ProcessGroup) -> Trip:
        """A trip that was agreed on, ``coming_NE`` saying how many rows of each rank are for each expert of this."""
        expert_NE = torch.arange(coming_NE.shape[1], device=coming_NE.device).expand_as(coming_NE)
        # output_size is the sum that the host knows: without it, or with another, the host would wait once more
        expert_X = expert_NE.flatten().repeat_interleave(coming_NE.flatten(), output_size=sum(received))
        order_X = expert_X.argsort(stable=True)
        return cls(group, sent, received, coming_NE.sum(0), order_X, inverse(order_X))

    def leave(self, x: Tensor, out: bool) -> tuple[Tensor, list[Any]]:
        """Send [R, ...] in the order of all experts ``out``, or [X, ...] back."""
        x = x.contiguous() if out else x.index_select(0, self.inverse_X)
        sent, received = (self.sent, self.received) if out else (self.received, self.sent)
        y = x.new_empty(sum(received), *x.shape[1:])
        return y, [dist.all_to_all_single(y, x, received, sent, group=self.group, async_op=True)]

    def arrive(self, y: Tensor, out: bool) -> Tensor:
        """What came, in the order of this rank's experts if it went ``out``."""
        return y.index_select(0, self.order_X) if out else y


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
        [trip] = Trip.of(rows.counts_E[None], self.group)
        x_XD, weights_X = Leg(trip, True, take_rows(x_MD, rows), rows.weights_R).arrive()
        [y_RD] = Leg(trip, False, experts(x_XD, weights_X, trip.counts_E)).arrive()
        return add_rows(y_RD, rows, len(x_MD))


class Overlapped:
    """:class:`Exchange` in parts of as many tokens each: experts compute one part while others travel.

    Args:
        group: The ranks that share the experts.
        parts: How many. More hide more of the way, and make the products of experts smaller.
    """

    def __init__(self, group: dist.ProcessGroup, parts: int = 2) -> None:
        self.group, self.parts = group, parts

    @torch.compiler.disable
    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
        """[M, D] -> [M, D]. Backward does the same in the opposite order, for autograd takes the last node first."""
        part_R = rows.tokens_R * self.parts // max(len(x_MD), 1)
        cells_R = part_R * len(rows.counts_E) + experts_of(rows)
        counts_C = cells_R.new_zeros(self.parts * len(rows.counts_E)).scatter_add_(0, cells_R, torch.ones_like(cells_R))
        trips = Trip.of(counts_C.view(self.parts, -1), self.group)
        rows = reordered(rows, part_R.argsort(stable=True))
        sizes = [sum(trip.sent) for trip in trips]
        parts = zip(trips, take_rows(x_MD, rows).split(sizes), rows.weights_R.split(sizes), strict=True)
        there = [Leg(trip, True, x_RD, weights_R) for trip, x_RD, weights_R in parts]
        met = zip(trips, there, strict=True)
        back = [Leg(trip, False, experts(*leg.arrive(), trip.counts_E)) for trip, leg in met]
        return add_rows(torch.cat([y_RD for leg in back for y_RD in leg.arrive()]), rows, len(x_MD))


class Leg:
    """Tensors that left and have yet to arrive; so do their gradients, in the opposite order.

    Args:
        carrier: Who brings them, such as a :class:`Trip`.
        out: Whether they go out, to their experts, or back.
        parts: The tensors; together, so that gradients come back in the same order on all ranks.
    """

    def __init__(self, carrier: Carrier, out: bool, *parts: Tensor) -> None:
        self._way = _Way(carrier, out)
        self._mark = _Leave.apply(self._way, *parts)

    def arrive(self) -> tuple[Tensor, ...]:
        """Wait for them, on the device alone if it can."""
        return _Arrive.apply(self._way, self._mark)


class _Way:
    """What is on the way; autograd sees an empty mark of it, for it takes gradients to be as large as values."""

    def __init__(self, carrier: Carrier, out: bool) -> None:
        self.carrier, self.out = carrier, out
        self.coming: list[tuple[Tensor, list[Any]]] = []

    def leave(self, parts: tuple[Tensor, ...], out: bool) -> Tensor:
        self.coming = [self.carrier.leave(part, out) for part in parts]
        return parts[0].new_empty(0)

    def arrive(self, out: bool) -> tuple[Tensor, ...]:
        coming, self.coming = self.coming, []
        for _, works in coming:
            for work in works:
                work.wait()
        return tuple(self.carrier.arrive(part, out) for part, _ in coming)


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, *parts: Tensor) -> Tensor:
        ctx.way = way
        return way.leave(parts, way.out)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.way.arrive(not ctx.way.out)


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, _: Tensor) -> tuple[Tensor, ...]:
        ctx.way = way
        return way.arrive(way.out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.way.leave(grads, not ctx.way.out)


def experts_of(rows: Rows) -> Tensor:
    """int64[R], the expert of each row."""
    expert_E = torch.arange(len(rows.counts_E), device=rows.counts_E.device)
    return expert_E.repeat_interleave(rows.counts_E, output_size=len(rows.tokens_R))


def reordered(rows: Rows, order_R: Tensor) -> Rows:
    """The same rows, that of index ``order_R[r]`` at place r."""
    rows_MK, inverse_R = rows.rows_MK, inverse(order_R)
    if rows_MK is not None:
        rows_MK = inverse_R[rows_MK.clamp(min=0)].where(rows_MK >= 0, -1)
    return replace(rows, tokens_R=rows.tokens_R[order_R], weights_R=rows.weights_R[order_R], rows_MK=rows_MK)


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_host(sizes: Tensor) -> list[Any]:
    """Read a tensor. What was copied without waiting may be read only after the event of the copy."""
    if not sizes.is_cuda:
        return sizes.tolist()
    host = torch.empty(sizes.shape, dtype=sizes.dtype, pin_memory=True)
    host.copy_(sizes, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.tolist()
