"""Which source the next document comes from, so that the shares asked for are the shares trained on (MM1, section 3.3).

Nothing is drawn by chance. Every document drawn is booked on its source's account in the unit of the shares, and the
next one comes from the source that is furthest behind. With shares 45/45/10 in positions:

    booked so far   captions 300   interleaved 900   text 100        sum 1300
    wanted          captions 585   interleaved 585   text 130
    behind                   285              -315        30         -> captions

An account is never further off than about one document, however long the run and however uneven the documents. What
stands in rows lags by the few documents that wait to be packed, so with 16 of them a thousand rows realise every share
to within half a point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mm1.errors import UserError

Unit = Literal["positions", "text_tokens", "images", "documents"]
DEFAULT_WEIGHTS = {"captions": 45.0, "interleaved": 45.0, "text": 10.0}


def shares_of(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1; a source of weight 0 is left out.

    Raises:
        UserError: A weight that is negative or not finite, or nothing left.
    """
    if wrong := [name for name, weight in weights.items() if not 0 <= weight < math.inf]:
        raise UserError(f"data.weights.{wrong[0]} is {weights[wrong[0]]}; expected a number of at least 0")
    total = sum(weights.values())
    if total <= 0:
        raise UserError(f"data.weights is {dict(weights)}; expected at least one source with a weight above 0")
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def amount(unit: Unit, text_tokens: int, images: int, tokens_per_image: int) -> int:
    """What one document counts for in ``unit``."""
    match unit:
        case "positions":
            return text_tokens + images * tokens_per_image
        case "text_tokens":
            return text_tokens
        case "images":
            return images
        case "documents":
            return 1


def furthest_behind(shares: Sequence[float], booked: Sequence[float]) -> int:
    """Index of the source with the largest deficit against its share; the first of equals."""
    total = sum(booked)
    deficits = [share * total - amount for share, amount in zip(shares, booked, strict=True)]
    return max(range(len(shares)), key=lambda source: (deficits[source], shares[source]))
