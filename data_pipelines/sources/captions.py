"""Pictures with captions: ``captions/*.jsonl``, one picture a line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Draft, Rejection, Rows, WrongFields
from mm1.sample import Text


class Captions(Rows):
    """``{"image", "captions": [..]}`` becomes ``(picture, caption)``, one or several, chosen by a hash.

    Each has its own copy of the picture. One caption a picture is the default: then n pictures are n documents, and
    what the corpus takes of the mixture and of the disk says how many pictures it has. More of them are more to learn
    from where pictures are few. All captions of a picture stay on one side of the validation split.

    Args:
        files: As for every :class:`Source`.
        root: As for every source.
        stream: As for every source.
        captions_per_image: How many captions of a picture become documents.
    """

    stream = "captions"
    pattern = "captions/*.jsonl"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        captions_per_image: int = 1,
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.captions_per_image = captions_per_image

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        picture, captions = self.picture(path, row.get("image")), _captions(row)
        written = [number for number, caption in enumerate(captions) if caption.strip()]
        blank = sorted(set(range(len(captions))) - set(written)) if captions else [0]
        yield from (Rejection(f"{place}#{number}", "empty caption") for number in blank)
        group = self.group(picture)
        chosen = sorted(written, key=lambda number: hashlib.sha256(f"{group}#{number}".encode()).digest())
        for number in sorted(chosen[: self.captions_per_image]):
            yield Draft(f"{place}#{number}", self.stream, (picture, Text(captions[number].strip())), group)


def _captions(row: dict[str, Any]) -> list[str]:
    captions = row.get("captions")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise WrongFields
    return captions
