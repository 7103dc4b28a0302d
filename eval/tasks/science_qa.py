"""ScienceQA-IMG: the test questions with a picture (Lu et al. 2022), asked and read as LLaVA does.

``problems.json`` and ``pid_splits.json`` of the release, pictures ``test/<pid>/image.png`` (also below ``images/``).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_row, strings
from eval.metrics.choice import LETTERS
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

FIELDS = {"question": str, "choices": list, "answer": int}


def find(data: Data) -> list[Offer]:
    """``scienceqa-img/test`` where there are both files."""
    problems, splits = data.one(r"problems\.json"), data.one(r"pid_splits\.json")
    if problems is None or splits is None:
        return []
    return [Offer("scienceqa-img/test", partial(_task, data, problems, splits))]


def _task(data: Data, problems: Path, splits: Path) -> Task:
    rows, ids = read_object(problems, "ScienceQA's problems"), read_object(splits, "ScienceQA's splits")
    test, train = (_queries(data, problems, rows, ids, split) for split in ("test", "train"))
    about = (source(problems), source(splits))
    return Task("scienceqa-img/test", "choices", test, train, metric="scienceqa", choosing="letter", sources=about)


def _queries(data: Data, path: Path, rows: dict[str, Any], ids: dict[str, Any], split: str) -> tuple[Query, ...]:
    if not isinstance(ids.get(split), list):
        raise UserError(f"{path.with_name('pid_splits.json')} has no list {split}; expected the ids of its questions")
    if unknown := [id for id in ids[split] if str(id) not in rows]:
        raise UserError(f"{path} lacks question {unknown[0]} of {split}; expected all of pid_splits.json")
    for id in map(str, ids[split]):
        check_row(rows[id], FIELDS, path, f"question {id}")
    chosen = {str(id): rows[str(id)] for id in ids[split] if rows[str(id)].get("image")}
    names = [[f"{split}/{id}/{row['image']}", f"{id}/{row['image']}"] for id, row in chosen.items()]
    pictures = data.placed(["scienceqa", "scienceqa-img"], path, names, "images scienceqa scienceqa/images data")
    return tuple(_query(id, row, picture, path) for (id, row), picture in zip(chosen.items(), pictures, strict=True))


def _query(id: str, row: Any, picture: Path, path: Path) -> Query:
    choices = strings(row["choices"], path, f"choices of question {id}")
    if not 0 <= row["answer"] < len(choices):
        raise UserError(f"{path}: question {id} has answer {row['answer']} of {len(choices)} choices")
    hint = str(row.get("hint") or "").strip()
    question = f"Context: {hint}\n{row['question']}" if hint else row["question"]
    right = choices[row["answer"]]
    groups = tuple(str(row[name]) for name in ("subject", "topic") if row.get(name))
    grade = re.fullmatch(r"grade(\d+)", str(row.get("grade", "")))
    groups += (("grades 1-6" if int(grade[1]) <= 6 else "grades 7-12"),) if grade else ()
    about = {"letter": LETTERS[row["answer"]], "result": {"question_id": id}}
    about |= {"rationale": row["solution"]} if row.get("solution") else {}
    return Query(
        id, picture, question, (right,), right, choices=choices, groups=tuple(dict.fromkeys(groups)), about=about
    )
