"""All that decides what the global batches are: the settings of the data, and whether they fit the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mm1.batch import ImageSpec
from mm1.data.augment import Augment
from mm1.data.mixture import DEFAULT_WEIGHTS, Unit, Weight, check_weights, shares_of, weight_at
from mm1.data.shards import ShardSet
from mm1.errors import UserError, at_least
from mm1.sample import WHOLE, Views

WhenExhausted = Literal["repeat", "drop", "stop"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what the global batches are.

    Args:
        corpus: Folder of shards.
        image_spec: How pictures are prepared, and how many positions each takes.
        weights: Share of each source, in ``unit``; they need not sum to anything. One may be a schedule: weights by the
            step of the optimizer, with even changes in between.
        unit: What the weights count; with ``rows`` each row comes from one source.
        row_tokens: Positions of a row.
        images_per_row: Most pictures of a row.
        rows_per_step: Rows of a global batch.
        streams: Independent plans that share the rows of a batch and the documents of every source.
        seed: Decides the order of documents.
        look_ahead: Documents of each source that wait to be packed; more of them fill rows better.
        max_epochs: How often a source may be read through; without end where it is not named.
        when_exhausted: What happens then: its documents are repeated after all, or its share goes to the others, or
            training stops.
        augment: How training pictures vary from epoch to epoch; None leaves them as they are.
        blank: Whether every picture is replaced by a grey one, to train what answers without looking.

    Raises:
        UserError: Settings that cannot be meant.
    """

    corpus: Path
    image_spec: ImageSpec
    row_tokens: int
    rows_per_step: int
    weights: Mapping[str, Weight] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    unit: Unit = "positions"
    images_per_row: int = 16
    streams: int = 1
    seed: int = 0
    look_ahead: int = 64
    max_epochs: Mapping[str, int] = field(default_factory=dict)
    when_exhausted: WhenExhausted = "repeat"
    augment: Augment | None = None
    blank: bool = False

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("row_tokens", "rows_per_step", "streams", "look_ahead")}
        at_least(1, {f"data.{name}": value for name, value in counts.items()})
        at_least(1, {f"data.max_epochs.{name}": value for name, value in self.max_epochs.items()})
        at_least(0, {"data.seed": self.seed, "data.images_per_row": self.images_per_row})
        check_weights(self.weights)
        if unknown := self.max_epochs.keys() - set(self.names):
            raise UserError(
                f"data.max_epochs names {min(unknown)!r}; expected sources that data.weights gives a share, "
                f"which are {', '.join(self.names)}"
            )
        if self.augment is not None and self.image_spec.views.count > 1:
            raise UserError(
                f"data.augment would vary each of a picture's {self.image_spec.views} for itself; expected no "
                f"data.augment, or one view"
            )
        if self.rows_per_step % self.streams:
            raise UserError(
                f"data.rows_per_step is {self.rows_per_step}; expected a multiple of data.streams = {self.streams}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that are read at all."""
        schedules = {name: w.values() if isinstance(w, Mapping) else (w,) for name, w in self.weights.items()}
        return tuple(name for name, values in schedules.items() if any(value > 0 for value in values))

    def shares(self, step: int = 0) -> list[float]:
        """Share of each of :attr:`names` at a step; they sum to 1."""
        return shares_of([weight_at(self.weights[name], step) for name in self.names])

    def mean_shares(self, steps: int) -> dict[str, float]:
        """Share of each source over a whole run, in percent."""
        if not any(isinstance(weight, Mapping) for weight in self.weights.values()):
            steps = 1
        mean = np.mean([self.shares(step) for step in range(steps)], axis=0)
        return {name: 100 * float(share) for name, share in zip(self.names, mean, strict=True)}

    def limit(self, name: str, documents: int) -> int | None:
        """How many documents of a source may be read, if that is limited."""
        epochs = None if self.when_exhausted == "repeat" else self.max_epochs.get(name)
        return None if epochs is None else epochs * documents


def open_shards(recipe: Recipe, split: str) -> list[ShardSet]:
    """The shards of every source of the recipe.

    Raises:
        UserError: Shards that are not there, or that this recipe can never pack.
    """
    opened = [ShardSet(recipe.corpus, name, split) for name in recipe.names]
    for shards, name in zip(opened, recipe.names, strict=True):
        if split == "train":
            _check_any(shards, name, recipe)
        _check_fits(shards, name, recipe)
    return opened


def _check_any(shards: ShardSet, name: str, recipe: Recipe) -> None:
    if not len(shards):
        raise UserError(
            f"{recipe.corpus} has no training documents in {name!r}, which has weight {recipe.weights[name]}; "
            f"set data.weights.{name} to 0 or write shards for it"
        )
    if recipe.unit == "images" and not shards.images.any():
        raise UserError(
            f"data.unit is images, but {name!r} has none, so no share of them can be its own; "
            f"choose another data.unit or set data.weights.{name} to 0"
        )


def _check_fits(shards: ShardSet, name: str, recipe: Recipe) -> None:
    """A document that no row can take would never be packed."""
    positions = shards.text_tokens + shards.images * np.int64(recipe.image_spec.tokens)
    longest, most = int(positions.max(initial=0)), int(shards.images.max(initial=0))
    if longest > recipe.row_tokens:
        raise UserError(
            f"{name!r} has a document of {longest} positions, rows have data.row_tokens = {recipe.row_tokens}; "
            f"set it to at least {longest} or write the shards for shorter rows"
        )
    if most > recipe.images_per_row:
        raise UserError(
            f"{name!r} has a document of {most} pictures, rows take data.images_per_row = {recipe.images_per_row}; "
            f"set it to at least {most} or write the shards for fewer"
        )


def check_corpus(manifest: Mapping[str, Any], fingerprint: str, recipe: Recipe) -> None:
    """Refuse a corpus that was written for another model or changed since.

    Args:
        manifest: That of the corpus.
        fingerprint: That of the tokenizer beside it.
        recipe: What is to be read.

    Raises:
        UserError: The first difference, with both values and the setting.
    """
    for name in recipe.names:
        if name not in manifest["streams"]:
            raise UserError(
                f"{recipe.corpus} has no stream {name!r}, only {', '.join(manifest['streams'])}; "
                f"set data.weights to the streams that are there"
            )
    spec = recipe.image_spec
    fixed: Sequence[tuple[str, object, str]] = [
        ("tokenizer", fingerprint, "data.corpus"),
        ("tokens_per_image", spec.tokens, "model.model.connector.init_args.tokens"),
    ]
    stored: Sequence[tuple[str, object, str]] = [
        ("image_px", spec.size_px, "model.model.vision"),
        ("resize", spec.resize, "model.model.vision"),
        ("interpolation", spec.interpolation, "model.model.vision"),
    ]
    views = Views(**manifest["views"]) if "views" in manifest else WHOLE
    if views != spec.views:
        raise UserError(
            f"{recipe.corpus} shows a picture in {views}, this run in {spec.views}: change model.model.views or write "
            f"the shards again"
        )
    for key, expected, setting in [*fixed, *(() if manifest["keep_pictures"] else stored)]:
        if manifest[key] != expected:
            raise UserError(
                f"{recipe.corpus} was written with {key} = {manifest[key]}, this run has {expected}: "
                f"change {setting} or write the shards again"
            )
