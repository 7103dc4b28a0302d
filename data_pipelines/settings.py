"""What decides the content of shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from data_pipelines.cut import How
from mm1.errors import UserError, at_least
from mm1.sample import WHOLE, Views
from mm1.template import OURS, Template


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of shards; recorded in the manifest.

    Args:
        row_tokens: Positions of a row; no document is longer.
        tokens_per_image: Positions of a picture, as the connector makes them; of several views, those of each.
        images_per_row: Pictures of a row, each view one of them.
        image_px: Side at which pictures are stored, that of the model.
        resize: ``squash``, ``crop`` or ``pad``, that of the model's image encoder.
        interpolation: ``bicubic`` or ``bilinear``.
        keep_pictures: Store the files as they are; every epoch then pays for resizing.
        captions_per_image: How many captions of a picture become documents.
        also: Streams to write beside the usual ones: ``vqa``, ``fewshot``.
        val_share: Share of each stream's documents held out for validation.
        shard_bytes: Size at which a shard is closed.
        cut: Where a document that is longer than a row may be cut: ``sentences``, ``words``, ``items`` or ``never``.
        part_rows: Rows of a raw file that are one unit of work and have shards of their own.
        template: YAML of the words that conversations are told in (configs/template); ours if not given.
        hints: By stream, the name of the template's hint that stands behind each of its questions: ``{vqav2: short}``.
        views: In which views a picture is shown, as the model takes it; they are cut when shards are written.
    """

    row_tokens: int = 512
    tokens_per_image: int = 16
    images_per_row: int = 16
    image_px: int = 64
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    keep_pictures: bool = False
    captions_per_image: int = 1
    also: tuple[str, ...] = ()
    val_share: float = 0.02
    shard_bytes: int = 256_000_000
    cut: How = "sentences"
    part_rows: int = 2048
    views: Views = WHOLE
    template: Path | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("tokens_per_image", "images_per_row", "image_px", "captions_per_image", "shard_bytes", "part_rows")
        at_least(1, {name: getattr(self, name) for name in names})
        if isqrt(self.tokens_per_image) ** 2 != self.tokens_per_image:
            raise UserError(
                f"tokens_per_image is {self.tokens_per_image}; expected a square such as 16 or 144, as connectors make"
            )
        views, positions = self.views.count, self.views.count * self.tokens_per_image
        if self.row_tokens < positions + 3:
            what = f"{self.tokens_per_image} tokens (tokens_per_image)"
            if views > 1:
                what = f"{self.views} x {self.tokens_per_image} = {positions} tokens (views, tokens_per_image)"
            raise UserError(
                f"row_tokens is {self.row_tokens}; a picture of {what} with begin, end and a word takes at least "
                f"{positions + 3}"
            )
        if views > self.images_per_row:
            raise UserError(
                f"images_per_row is {self.images_per_row}; a picture is shown in {self.views}, so rows of at least "
                f"{views} are expected"
            )
        if views > 1 and self.keep_pictures:
            raise UserError("keep_pictures stores files as they are, and views are cut; expected one of both")
        for name in self.hints.values():
            self.words.hinted((), name)
        if not 0 <= self.val_share <= 0.5:
            raise UserError(f"val_share is {self.val_share}; expected a share between 0 and 0.5")

    @property
    def words(self) -> Template:
        """The template.

        Raises:
            UserError: Its file is not there, or no template.
        """
        return OURS if self.template is None else Template.read(self.template)

    def record(self) -> dict[str, Any]:
        """As the manifest keeps it; what was the only way once goes without saying: whole pictures, our template."""
        told = {**asdict(self), "also": [*self.also], "template": self.words.record(), "hints": dict(self.hints)}
        usual = {"views": self.views.count == 1, "template": self.words == OURS, "hints": not self.hints}
        return {name: value for name, value in told.items() if not usual.get(name)}
