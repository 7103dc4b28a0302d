"""Captioning on files in COCO's format, demonstrations from caption files that are trained on (MM1, section 3.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, rows
from eval.task import Offer, Query, Task
from mm1.errors import UserError
from mm1.runs import json_lines

UNTRAINED = ("_dev", "_val", "_test")


def find(data: Data) -> list[Offer]:
    """One task for each ``captions_eval/*.json``."""
    files = sorted((data.folder / "captions_eval").glob("*.json"))
    return [Offer(f"captions/{file.stem}", partial(_task, file, data.folder / "captions")) for file in files]


def _task(file: Path, trained: Path) -> Task:
    pool = demonstrations(trained)
    warning = () if pool else (f"no trained caption file in {trained}: demonstrations are scored pictures",)
    return Task(f"captions/{file.stem}", "captions", _queries(file), pool, warning, answer_field="caption")


def demonstrations(folder: Path) -> tuple[Query, ...]:
    """Pictures of the ``*_train.jsonl`` files, or of all that are trained on where none is named so.

    A faulty row is none: the shards' manifest has counted it, and training went on without it.
    """
    trained = [file for file in sorted(folder.glob("*.jsonl")) if not file.stem.endswith(UNTRAINED)]
    chosen = [file for file in trained if file.stem.split("_")[-1] == "train"] or trained
    return tuple(query for file in chosen for row in json_lines(file) for query in _demonstration(file, row))


def _demonstration(file: Path, row: dict[str, Any] | None) -> Iterator[Query]:
    match row:
        case {"image": str(image), "captions": [str(first), *others]} if first.strip():
            given = (first, *(caption for caption in others if isinstance(caption, str)))
            yield Query(f"{file.stem}/{image}", file.parent / image, "", given, first)


def _queries(file: Path) -> tuple[Query, ...]:
    captions: dict[str, list[str]] = defaultdict(list)
    for row in rows(file, "annotations", {"image_id": ID, "caption": str}):
        captions[str(row["image_id"])].append(row["caption"])
    queries = []
    for row in rows(file, "images", {"id": ID, "path": str}):
        given = captions.get(str(row["id"]))
        if given is None:
            raise UserError(f"{file} has no caption for picture {row['id']}; expected at least one in annotations")
        about = {"result": {"image_id": row["id"]}}
        queries.append(Query(str(row["id"]), file.parent / row["path"], "", tuple(given), given[0], about=about))
    unknown = captions.keys() - {query.id for query in queries}
    if unknown:
        raise UserError(f"{file} has captions for picture {min(unknown)}; expected only pictures among its images")
    check_ids((query.id for query in queries), file)
    return tuple(queries)
