"""What decides the content of shards."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

from data_pipelines.cut import How
from mm1.errors import UserError, at_least


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of shards; recorded in the manifest.

    Args:
        row_tokens: Positions of a row; no document is longer.
        tokens_per_image: Positions of a picture, as the connector makes them.
        images_per_row: Pictures of a row.
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

    def __post_init__(self) -> None:
        names = ("tokens_per_image", "images_per_row", "image_px", "captions_per_image", "shard_bytes", "part_rows")
        at_least(1, {name: getattr(self, name) for name in names})
        if isqrt(self.tokens_per_image) ** 2 != self.tokens_per_image:
            raise UserError(
                f"tokens_per_image is {self.tokens_per_image}; expected a square such as 16 or 144, as connectors make"
            )
        if self.row_tokens < self.tokens_per_image + 3:
            raise UserError(
                f"row_tokens is {self.row_tokens}; a picture of {self.tokens_per_image} tokens (tokens_per_image) with "
                f"begin, end and a word takes at least {self.tokens_per_image + 3}"
            )
        if not 0 <= self.val_share <= 0.5:
            raise UserError(f"val_share is {self.val_share}; expected a share between 0 and 0.5")
