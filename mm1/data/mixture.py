"""Which source the next document comes from, so that the shares asked for are the shares trained on (MM1, section 3.3).

Nothing is drawn by chance. Every document laid into a row is booked in the unit of the shares: each source is owed its
share of it, and the document's own source pays it. The next document comes from the source that is owed most. With
shares 45/45/10 in positions, after a picture page of 900:

    owed before     captions  120   interleaved    0   text -120        they sum to 0
    the page        captions +405   interleaved +405   text  +90        and interleaved pays 900
    owed after      captions  525   interleaved -495   text  -30        -> captions

No source is ever further off than about one document and the slack that packing needs (:mod:`mm1.data.pack`), however
long the run and however uneven the documents. Shares may change from step to step: what is owed stays owed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal

from mm1.errors import UserError

Unit = Literal["positions", "text_tokens", "images", "documents", "rows"]
Weight = float | Mapping[int, float]
DEFAULT_WEIGHTS: dict[str, Weight] = {"captions": 45.0, "interleaved": 45.0, "text": 10.0}


def check_weights(weights: Mapping[str, Weight]) -> None:
    """Refuse weights that cannot be meant.

    Raises:
        UserError: A weight that is negative or not finite, a step below 0, or a step at which nothing is left.
    """
    for name, weight in weights.items():
        for step, value in _points(weight):
            if step < 0 or not 0 <= value < math.inf:
                raise UserError(
                    f"data.weights.{name} is {weight}; expected a number of at least 0, or such numbers by the step of "
                    f"the optimizer at which they hold"
                )
    for step in sorted({step for weight in weights.values() for step, _ in _points(weight)} | {0}):
        if sum(weight_at(weight, step) for weight in weights.values()) <= 0:
            raise UserError(f"data.weights is {dict(weights)}; expected a source with a weight above 0 at step {step}")


def weight_at(weight: Weight, step: int) -> float:
    """A weight at a step: between the steps that a schedule names it changes evenly, before and after it stays."""
    points = _points(weight)
    after = bisect_right(points, step, key=lambda point: point[0])
    if after in (0, len(points)):
        return points[max(0, after - 1)][1]
    (start, low), (end, high) = points[after - 1 : after + 1]
    return low + (high - low) * (step - start) / (end - start)


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights as shares that sum to 1, or all 0 where there are none."""
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def amount(unit: Unit, text_tokens: int, images: int, tokens_per_image: int) -> int:
    """What one document counts for in ``unit``; rows are booked as such and not by document."""
    match unit:
        case "positions":
            return text_tokens + images * tokens_per_image
        case "text_tokens":
            return text_tokens
        case "images":
            return images
        case "documents":
            return 1
        case "rows":
            return 0


class Account:
    """What every source is owed, in the unit of the shares.

    Args:
        owed: What they are owed at the beginning, summing to 0.
    """

    def __init__(self, owed: Sequence[float]) -> None:
        self.owed = list(owed)
        self.shares = [0.0] * len(self.owed)

    def share(self, shares: Sequence[float]) -> None:
        """From now on, shares are these; what is owed to a source without any is owed to the others instead."""
        self.shares = list(shares)
        for source, share in enumerate(self.shares):
            if not share and self.owed[source]:
                left, self.owed[source] = self.owed[source], 0.0
                self.owed = [owed + share * left for owed, share in zip(self.owed, self.shares, strict=True)]

    def ranked(self, slack: float) -> list[int]:
        """Sources by what they are owed, most first; without those that had more than ``slack`` too much already."""
        ranked = [source for source, share in enumerate(self.shares) if share]
        ranked.sort(key=lambda source: -self.owed[source])
        return [source for source in ranked if self.owed[source] >= -slack] or ranked[:1]

    def book(self, source: int, amount: float) -> None:
        """A document of ``source`` was laid into a row."""
        self.owed = [owed + share * amount for owed, share in zip(self.owed, self.shares, strict=True)]
        self.owed[source] -= amount


def _points(weight: Weight) -> list[tuple[int, float]]:
    return sorted(weight.items()) if isinstance(weight, Mapping) else [(0, weight)]
