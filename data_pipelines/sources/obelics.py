"""Web pages as two parallel lists: OBELICS (Laurençon et al. 2023), OmniCorpus (Li et al. 2024), MINT-1T's HTML part.

images  [null,       "http://x/a.jpg",  null   ]       one of the two at each place
texts   ["A bridge", null,              "Home."]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Draft, Place, Rejection, Rows, WrongFields
from data_pipelines.sources.pictured import Pictured, missing, scalars
from data_pipelines.sources.rows import json_value
from mm1.sample import Text


class ParallelLists(Pictured, Rows):
    """Parquet or JSON lines with ``images`` and ``texts``; pictures are URLs, so that they need a store.

    ``valid_image`` of OmniCorpus is heeded; ``general_metadata`` and what else a row says goes into ``about``.
    """

    stream = "interleaved"

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        images, texts = parallel(row)
        items: list[Text | Place] = []
        lost: list[Rejection] = []
        for image, text, valid in zip(images, texts, _valid(row, images), strict=True):
            if text is not None:
                items += [Text(text.strip())] if text.strip() else []
            elif image is None:
                continue
            elif not valid:
                lost.append(Rejection(f"{place} {image:.200}", "picture is marked as not valid", fault=False))
            elif found := self.find(path, image):
                items.append(found)
            else:
                lost.append(missing(place, image))
        if any(isinstance(item, Text) for item in items):
            about = scalars(row) | scalars(_object(row.get("general_metadata")))
            group = str(about.get("url", place))
            yield Draft(place, self.stream, tuple(items), group, loose=True, about=about, lost=tuple(lost))
        else:
            yield Rejection(place, "empty document")


def parallel(row: dict[str, Any]) -> tuple[list[str | None], list[str | None]]:
    """Pictures and texts of a row, of equal length, never both at one place.

    Raises:
        WrongFields: They are not that.
    """
    images, texts = row.get("images"), row.get("texts")
    for values in (images, texts):
        if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
            raise WrongFields
    assert isinstance(images, list)
    assert isinstance(texts, list)
    if len(images) != len(texts) or any(image and text for image, text in zip(images, texts, strict=True)):
        raise WrongFields
    return [image or None for image in images], texts


def _valid(row: dict[str, Any], images: list[str | None]) -> list[bool]:
    """Whether each place's picture may be used; the row tells it by place, or by picture."""
    valid = row.get("valid_image")
    if valid is None:
        return [True] * len(images)
    if not isinstance(valid, list) or not all(isinstance(value, bool) for value in valid):
        raise WrongFields
    if len(valid) == len(images):
        return valid
    if len(valid) != sum(image is not None for image in images):
        raise WrongFields
    each = iter(valid)
    return [image is None or next(each) for image in images]


def _object(value: Any) -> dict[str, Any]:
    """What is a JSON object, or the text of one; an empty one for all else."""
    if isinstance(value, str):
        try:
            value = json_value(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
