"""What a mix makes of rows before any is planned: pictures that it needs, and how full rows can get.

A row of L positions and at most P pictures, and a mix that comes with so many pictures in L positions: if it needs more
than P, pictures run out first, and the rest of the row stays padding unless the mix is given up:

    captions alone, 144 + 25 positions each:  L = 4096 needs 24.2 pictures, P = 16 fills 16 / 24.2 = 66 %
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm1.data.recipe import Recipe
from mm1.data.shards import ShardSet

SAMPLES = 1_000_000


@dataclass(frozen=True)
class Lengths:
    """Mean sizes of a source's documents, of an even sample of at most a million.

    Args:
        positions: Positions of a document, pictures included.
        images: Its pictures.
        amount: What it counts for in the mixture's unit.
        met: The same of the document in which a place of the source falls; long ones are met more often.
    """

    positions: float
    images: float
    amount: float
    met: float

    @classmethod
    def of(cls, shards: ShardSet, recipe: Recipe) -> Lengths:
        """Those of one source."""
        some = np.linspace(0, len(shards) - 1, min(len(shards), SAMPLES)).astype(np.int64)
        text_tokens, images = shards.text_tokens[some].astype(np.float64), shards.images[some].astype(np.float64)
        positions = text_tokens + recipe.image_spec.tokens * images
        units = {"positions": positions, "text_tokens": text_tokens, "images": images}
        amounts = units.get(recipe.unit, np.ones(1))  # a document, or a row
        met = float((amounts**2).sum() / amounts.sum())
        return cls(float(positions.mean()), float(images.mean()), float(amounts.mean()), met)


@dataclass(frozen=True)
class Forecast:
    """What rows of a mix hold on average, before they are packed.

    Args:
        images: Pictures that the mix needs in the positions of a row.
        fill: Share of positions that can be filled at most, given the pictures a row takes.
        amount: What a full row counts for in the mixture's unit.
    """

    images: float
    fill: float
    amount: float


def forecast(recipe: Recipe, shares: Sequence[float], lengths: Sequence[Lengths]) -> Forecast:
    """What rows will hold where sources have these shares, in the recipe's unit."""
    if recipe.unit == "rows" and sum(map(bool, shares)) > 1:
        alone = [forecast(recipe, [1.0], [of]) for of in lengths]
        images, fill = (float(np.dot(shares, [getattr(one, name) for one in alone])) for name in ("images", "fill"))
        return Forecast(images, fill, 1.0)
    documents = [share / of.amount for share, of in zip(shares, lengths, strict=True)]  # in one unit of the mixture
    positions = sum(count * of.positions for count, of in zip(documents, lengths, strict=True))
    images = recipe.row_tokens / positions * sum(c * of.images for c, of in zip(documents, lengths, strict=True))
    fill = min(1.0, recipe.images_per_row / images) if images else 1.0
    return Forecast(images, fill, recipe.row_tokens / positions)
