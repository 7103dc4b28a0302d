"""MMMU (Yue et al. 2023, arXiv 2311.16502): college questions with up to seven pictures, in text and choices.

The release's parquet files, a folder for each of 30 subjects: ``Accounting/validation-00000-of-00001.parquet`` with
``id, question, options (a list as text), answer, question_type, subfield, image_1 .. image_7``. ``<image 1>`` in a
question or a choice is where that picture stands.
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_ids
from eval.metrics.choice import LETTERS
from eval.parquet import parquet_rows, picture_bytes
from eval.prompts import IN_PLACE
from eval.task import Offer, Query, Task, source
from eval.unpack import Unpacked
from mm1.errors import UserError

SPLITS = {"dev": "dev", "validation": "val", "test": "test"}
NAME = r"(dev|validation|test)-\d+-of-\d+.*\.parquet"
PICTURES = 7
TYPES = ("multiple-choice", "open")
FIELDS = {"id": str, "question": str, "options": str, "question_type": str}
DOMAINS = {
    "Art & Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health & Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Human. & Social Sci.": "History Literature Psychology Sociology",
    "Tech & Eng.": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
    "Mechanical_Engineering",
}
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split()}


def find(data: Data) -> list[Offer]:
    """``mmmu/val``, ``mmmu/dev`` and ``mmmu/test`` over the subjects that are there."""
    files: dict[str, list[Path]] = {}
    for path in data.named(NAME):
        if path.parent.name in DOMAIN_OF:
            files.setdefault(SPLITS[path.name.split("-")[0]], []).append(path)
    pool = files.get("dev", [])
    return [
        Offer(f"mmmu/{split}", partial(_task, split, paths, pool if split != "dev" else []))
        for split, paths in files.items()
    ]


def _task(split: str, paths: list[Path], pool: list[Path]) -> Task:
    scored, train = (tuple(query for path in of for query in _queries(path)) for of in (paths, pool))
    check_ids((query.id for query in scored), paths[0].parent.parent)
    lacking = sorted(DOMAIN_OF.keys() - {path.parent.name for path in paths})
    told = [f"{len(lacking)} of {len(DOMAIN_OF)} subjects are missing: {', '.join(lacking)}"] if lacking else []
    known = all(query.references for query in scored)
    metric, about = "mmmu" if known else "none", tuple(source(path) for path in paths)
    return Task(f"mmmu/{split}", "choices", scored, train, tuple(told), metric=metric, choosing="letter", sources=about)


def _queries(path: Path) -> list[Query]:
    unpacked = Unpacked(path)
    return [_query(row, path, unpacked) for row in parquet_rows(path, FIELDS)]


def _query(row: dict[str, Any], path: Path, unpacked: Unpacked) -> Query:
    if row["question_type"] not in TYPES:
        raise UserError(
            f"{path}: question {row['id']} has question_type {row['question_type']!r}; expected {' or '.join(TYPES)}"
        )
    choices = _list(row["options"], path, row["id"])
    question, choices, pictures = _pictures(row, choices, path, unpacked)
    answer = str(row.get("answer") or "")
    hidden = answer in ("", "?")
    subject = path.parent.name
    groups = (DOMAIN_OF[subject], subject)
    about: dict[str, Any] = {"result": {"id": row["id"]}}
    right: tuple[str, ...] = ()
    if row["question_type"] == "multiple-choice":
        letters = LETTERS[: len(choices)]
        if not hidden and answer not in tuple(letters):
            raise UserError(f"{path}: question {row['id']} has answer {answer!r} of {len(choices)} choices")
        right = right if hidden else (choices[letters.index(answer)],)
        about = {**about, "letter": answer}
        said = right[0] if right else ""
        found = Query(row["id"], pictures[0], question, right, said, choices=tuple(choices), groups=groups, about=about)
    else:
        right = right if hidden else tuple(_list(answer, path, row["id"]) if answer.startswith("[") else [answer])
        said = right[0] if right else ""
        found = Query(row["id"], pictures[0], question, right, said, groups=groups, about=about, kind="vqa")
    return replace(found, others=tuple(pictures[1:]), inline=True)


def _pictures(
    row: dict[str, Any], choices: list[str], path: Path, unpacked: Unpacked
) -> tuple[str, list[str], list[Path]]:
    """Question and choices with the pictures that they name numbered 1, 2, .., and these pictures, in that order."""
    named = [int(at) for at in re.findall(IN_PLACE, "\n".join([row["question"], *choices]))]
    there = {at: data for at in range(1, PICTURES + 1) if (data := picture_bytes(row.get(f"image_{at}")))}
    if lacking := [at for at in named if at not in there]:
        raise UserError(f"{path}: question {row['id']} names <image {lacking[0]}>, and image_{lacking[0]} is empty")
    order = list(dict.fromkeys(named)) or sorted(there)
    if not order:
        raise UserError(f"{path}: question {row['id']} has no picture; expected image_1 at least")
    place = {at: number for number, at in enumerate(order, start=1)}

    def numbered(text: str) -> str:
        return re.sub(IN_PLACE, lambda found: f"<image {place[int(found[1])]}>", text)

    return (
        numbered(row["question"]),
        [numbered(choice) for choice in choices],
        [unpacked.path(there[at]) for at in order],
    )


def _list(text: str, path: Path, id: str) -> list[str]:
    """A list as Python spells it, which is how the release stores options."""
    try:
        found = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list):
        raise UserError(f"{path}: question {id} has {text!r:.60}; expected a list such as ['a', 'b']")
    return [str(one) for one in found]
