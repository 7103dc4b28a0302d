"""POPE (Li et al. 2023, arXiv 2305.10355): is the object there? One JSON object a line, a file for each way to ask.

``coco_pope_random.json``, ``coco_pope_popular.json``, ``coco_pope_adversarial.json`` and COCO's val2014 pictures. The
number that tables give, LLaVA's and MM1's among them, is the mean of the three F1.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, check_row, json_values
from eval.metrics.benchmarks import WAYS
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError

FIELDS: dict[str, type | tuple[type, ...]] = {"question_id": ID, "image": str, "text": str, "label": str}
NAME = r"(\w+)_pope_(random|popular|adversarial)\.jsonl?"


def find(data: Data) -> list[Offer]:
    """``pope/coco``, or another set of pictures, with the files that are there."""
    found: dict[str, dict[str, Path]] = {}
    for path in data.named(NAME):
        kind, way = re.fullmatch(NAME, path.name).groups()  # type: ignore[union-attr]
        if way in found.setdefault(kind, {}):
            raise UserError(f"{found[kind][way]} and {path} both stand in {data.folder}; expected one of them (--data)")
        found[kind][way] = path
    return [Offer(f"pope/{kind}", partial(_task, data, kind, files)) for kind, files in found.items()]


def _task(data: Data, kind: str, files: dict[str, Path]) -> Task:
    queries: list[Query] = []
    for way in sorted(files, key=WAYS.index):
        path = files[way]
        found = _lines(path)
        names = [[row["image"], f"val2014/{row['image']}"] for row in found]
        pictures = data.placed(["pope", kind], path, names, f"images {kind} {kind}/val2014 val2014")
        queries += [_query(way, row, picture, path) for row, picture in zip(found, pictures, strict=True)]
        check_ids((query.id for query in queries), path)
    lacking = [way for way in WAYS if way not in files]
    told = (f"without {' and '.join(lacking)}, so that the mean is not POPE's",) if lacking else ()
    about = tuple(source(path) for path in files.values())
    return Task(f"pope/{kind}", "vqa", tuple(queries), (), told, metric="pope", sources=about)


def _lines(path: Path) -> list[Any]:
    """The files are called JSON and hold an object a line."""
    found = json_values(path, f"an object a line with {', '.join(FIELDS)}")
    for number, row in enumerate(found, start=1):
        check_row(row, FIELDS, path, f"line {number}")
    return found


def _query(way: str, row: Any, picture: Path, path: Path) -> Query:
    label = row["label"].strip().lower()
    if label not in ("yes", "no"):
        raise UserError(f"{path}: question {row['question_id']} has label {row['label']!r}; expected yes or no")
    id = f"{way}/{row['question_id']}"
    about = {"result": {"question_id": row["question_id"]}}
    return Query(id, picture, row["text"], (label,), label, groups=(way,), about=about)
