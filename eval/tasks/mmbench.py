"""MMBench (Liu et al. 2023, arXiv 2307.06281): tables with pictures inside, asked once or in all turns of the choices.

``mmbench_dev_20230712.tsv``, ``MMBench_DEV_EN.tsv`` and the like: ``index, question, hint, A, B, C, D, answer,
category, image (base64, or the index of the row that has it), l2-category, split``. The benchmark's own number is that
of circular evaluation, ``mmbench/..-circular``: choices move on by one place for each of them, and a question counts
where all turns are answered right.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from eval.files import Data, check_ids
from eval.task import Offer, Query, Task, source
from eval.unpack import Unpacked
from mm1.errors import UserError

NAME = r"(?i)mmbench_(.+)\.tsv"
LETTERS = "ABCDE"
NEEDED = ("index", "question", "image", "A", "B")
REFERENCE_CHARACTERS = 64  # an image cell no longer than this is another row's index
EMPTY = ("", "nan")


def find(data: Data) -> list[Offer]:
    """Each table asked once, ``mmbench/<rest of its name>``, and in turns, ``..-circular``."""
    offers = []
    for path in data.named(NAME):
        name = f"mmbench/{path.stem.lower().removeprefix('mmbench_')}"
        offers += [Offer(name, partial(_task, name, path, False))]
        offers += [Offer(f"{name}-circular", partial(_task, f"{name}-circular", path, True))]
    return offers


def _task(name: str, path: Path, circular: bool) -> Task:
    queries = tuple(turned for query in _queries(path) for turned in (turns(query) if circular else [query]))
    check_ids((query.id for query in queries), path)
    known = all("letter" in query.about for query in queries)
    metric = ("mmbench_circular" if circular else "mmbench") if known else "none"
    return Task(name, "choices", queries, metric=metric, choosing="letter", sources=(source(path),))


def turns(query: Query) -> list[Query]:
    """A question with its choices moved on by none, one, .. places; the id of the first is its own."""
    found = []
    for turn in range(len(query.choices)):
        choices = query.choices[turn:] + query.choices[:turn]
        about = {**query.about, "turns_of": query.id}
        if "letter" in about:
            about["letter"] = LETTERS[(LETTERS.index(about["letter"]) - turn) % len(choices)]
        id = query.id if turn == 0 else f"{query.id}/{turn}"
        found.append(replace(query, id=id, choices=choices, about=about))
    return found


def _queries(path: Path) -> Iterator[Query]:
    rows = list(_rows(path))
    images = {row["index"]: row["image"] for row in rows}
    unpacked = Unpacked(path)
    for row in rows:
        image = row["image"]
        if len(image) <= REFERENCE_CHARACTERS:
            image = images.get(image, "")
        if not image:
            raise UserError(f"{path}: row {row['index']} has image {row['image']!r}, which is no row's index")
        yield _query(row, unpacked.base64(image, f"row {row['index']}"), path)


def _query(row: dict[str, str], picture: Path, path: Path) -> Query:
    choices = tuple(row[letter] for letter in LETTERS if row.get(letter, "") not in EMPTY)
    answer = row.get("answer", "").strip()
    answer = "" if answer in EMPTY else answer
    if answer and answer not in tuple(LETTERS[: len(choices)]):
        raise UserError(f"{path}: row {row['index']} has answer {answer!r} of {len(choices)} choices")
    right = (choices[LETTERS.index(answer)],) if answer else ()
    hint = row.get("hint", "").strip()
    question = f"{hint}\n{row['question']}" if hint not in EMPTY else row["question"]
    groups = tuple(row[name] for name in ("category", "l2-category") if row.get(name, "") not in EMPTY)
    about = {**({"letter": answer} if answer else {}), "result": {"index": row["index"]}}
    said = right[0] if right else ""
    return Query(row["index"], picture, question, right, said, choices=choices, groups=groups, about=about)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)  # a picture in a cell is longer than the module's 128 kB
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter="\t"), start=1):
                if lacking := [name for name in NEEDED if not isinstance(row.get(name), str)]:
                    has = ", ".join(str(name) for name in row)
                    raise UserError(f"{path}: row {number} has {has}; expected also {', '.join(lacking)}")
                yield {name: value for name, value in row.items() if isinstance(value, str)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as tab-separated values ({error})") from None
