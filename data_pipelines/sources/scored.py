"""Which pictures a score stands on, and so may not be trained on: captioning, visual questions, in-context learning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import json_lines
from mm1.errors import UserError
from mm1.runs import read_json


def scored_pictures(corpus: Path) -> list[Path]:
    """Every picture of every scored set of a raw corpus folder, once, in order.

    Raises:
        UserError: A scored set that cannot be read; its pictures could not be kept out of training.
    """
    found: dict[Path, None] = {}
    readers = {"captions_eval/*.json": _captions, "vqa/*/*questions.json": _questions}
    readers |= {"vqa/*/test.jsonl": _lines, "icl/*.jsonl": _lines}
    for pattern, read in readers.items():
        for path in sorted(corpus.glob(pattern)):
            try:
                found |= dict.fromkeys(path.parent / name for name in read(path))
            except UserError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path} has not the fields of a scored set ({error!r}); see docs/data.md") from None
    return list(found)


def _captions(path: Path) -> Iterator[str]:
    yield from (image["path"] for image in read_json(path, "captions in COCO's format")["images"])


def _questions(path: Path) -> Iterator[str]:
    if path.name.startswith("train_"):
        return
    rows = read_json(path, "questions in the format of VQA v2")
    for row in rows["questions"]:
        yield f"images/COCO_{rows['data_subtype']}_{row['image_id']:012d}.jpg"


def _lines(path: Path) -> Iterator[str]:
    for place, row in json_lines(path):
        if row is None:
            raise UserError(f"{path.parent / place} is no JSON object; expected a line of a scored set")
        yield from _images(row)


def _images(value: Any) -> Iterator[str]:
    """Whatever stands under the key ``image``, however deep: demonstrations have pictures of their own."""
    if isinstance(value, dict):
        yield from ([value["image"]] if isinstance(value.get("image"), str) else [])
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _images(part)
