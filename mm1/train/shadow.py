"""Which experts are worth bringing to the tokens: FasterMoE's shadowing of hot experts (He et al. 2022, section 4.1).

A layer waits for its busiest rank. Instead of receiving every token of a hot expert, its rank can send the expert to
all others, which then answer their own tokens and send gradients of the weights back. The rule weighs both by a model
of their time: a rank with B rows computes ``3 t_row B`` (forward, and backward for inputs and for weights) and
receives and sends ``4 t_move B`` (rows and answers, and the gradients of both); an expert that is shadowed costs
``2 t_expert``, its weights out and their gradients back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts that a step is made of, measured or from data sheets.

    Args:
        row_s: One row through an expert, forward.
        move_s: One row from rank to rank.
        expert_s: The weights of one expert to all ranks, or their gradients back.
    """

    row_s: float
    move_s: float
    expert_s: float

    @classmethod
    def of(cls, width: int, ffn_width: int, *, flops_s: float = 4e14, bytes_s: float = 2e11) -> Costs:
        """Of SwiGLU experts in two-byte numbers.

        Args:
            width: Of rows.
            ffn_width: Inner width of an expert.
            flops_s: Floating-point operations a second that its products reach.
            bytes_s: Bytes a second from each rank to the others.
        """
        elements = 3 * width * ffn_width
        return cls(2 * elements / flops_s, 2 * width / bytes_s, 2 * elements / bytes_s)


def step_s(counts_NE: Sequence[Sequence[int]], hot: frozenset[int], costs: Costs) -> float:
    """Seconds of a layer's step, forward and backward.

    Args:
        counts_NE: Rows that each of N ranks has for each of E experts; rank n holds the n-th part of them.
        hot: Experts that are shadowed.
        costs: What its parts cost.
    """
    ranks, experts = len(counts_NE), len(counts_NE[0])
    here = experts // ranks
    computed, moved = [0] * ranks, [0] * ranks
    for expert in range(experts):
        owner = expert // here
        for rank, counts_E in enumerate(counts_NE):
            computed[rank if expert in hot else owner] += counts_E[expert]
            moved[owner] += counts_E[expert] if rank != owner and expert not in hot else 0
    return 3 * costs.row_s * max(computed) + 4 * costs.move_s * max(moved) + 2 * costs.expert_s * len(hot)


def worth_shadowing(counts_NE: Sequence[Sequence[int]], costs: Costs) -> frozenset[int]:
    """The experts to shadow: the most visited ones, as many of them as make the step shortest.

    Deterministic, so that ranks that know the same counts come to the same answer without asking each other.
    """
    loads = [sum(column) for column in zip(*counts_NE, strict=True)]
    order = sorted(range(len(loads)), key=lambda index: (-loads[index], index))
    times_s = list(_times_s(counts_NE, loads, order, costs))
    return frozenset(order[: times_s.index(min(times_s))])


def _times_s(
    counts_NE: Sequence[Sequence[int]], loads: Sequence[int], order: Sequence[int], costs: Costs
) -> Iterator[float]:
    """:func:`step_s` with none, one, two, ... of an order shadowed, each from the one before: a GPU waits for it."""
    here = len(loads) // len(counts_NE)
    computed = [sum(loads[rank * here : (rank + 1) * here]) for rank in range(len(counts_NE))]
    moved = [
        rows - sum(counts_E[n * here : (n + 1) * here])
        for n, (rows, counts_E) in enumerate(zip(computed, counts_NE, strict=True))
    ]
    for size in range(len(order) + 1):
        yield 3 * costs.row_s * max(computed) + 4 * costs.move_s * max(moved) + 2 * costs.expert_s * size
        if size < len(order):
            expert = order[size]
            computed = [rows + counts_E[expert] for rows, counts_E in zip(computed, counts_NE, strict=True)]
            computed[expert // here] -= loads[expert]
            moved[expert // here] -= loads[expert] - counts_NE[expert // here][expert]
