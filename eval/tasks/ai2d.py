"""AI2D (Kembhavi et al. 2016): questions about diagrams of school books, four choices each.

``questions/<picture>.json`` and ``images/`` of the release, and ``ai2d_test_ids.csv``, the numbers of the diagrams of
its test part; the others are what demonstrations are drawn from. Where choices are letters written in the diagram
(``abcLabel``), the letters printed there are asked about, as they stand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_row, strings, text_lines
from eval.metrics.choice import LETTERS
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

TEST = r"ai2d_test_ids\.csv"


def find(data: Data) -> list[Offer]:
    """``ai2d/test`` where there are the questions and the list of test diagrams."""
    path = data.one(TEST)
    return [] if path is None else [Offer("ai2d/test", partial(_task, data, path))]


def _task(data: Data, path: Path) -> Task:
    folders = [at for at in (path.parent / "questions", *path.parent.glob("*/questions")) if at.is_dir()]
    if not folders:
        raise UserError(f"{path} stands without a folder questions/; expected that of AI2D beside it")
    test = {line.strip() for line in text_lines(path) if line.strip()}
    files = sorted(folders[0].glob("*.json"), key=lambda file: (len(file.name), file.name))
    if unknown := test - {_number(file) for file in files}:
        raise UserError(f"{path} names diagram {min(unknown)}, of which {folders[0]} has no questions")
    queries = [(_number(file) in test, query) for file in files for query in _queries(data, file)]
    scored, train = (tuple(query for tested, query in queries if tested is part) for part in (True, False))
    return Task("ai2d/test", "choices", scored, train, metric="choice", choosing="letter", sources=(source(path),))


def _number(file: Path) -> str:
    return file.name.split(".")[0]


def _queries(data: Data, file: Path) -> list[Query]:
    found = read_object(file, "questions of AI2D")
    check_row(found, {"imageName": str, "questions": dict}, file, "it")
    [picture] = data.placed(["ai2d"], file, [[found["imageName"]]], "images")
    return [_query(question, row, picture, file) for question, row in found["questions"].items()]


def _query(question: str, row: Any, picture: Path, file: Path) -> Query:
    check_row(row, {"answerTexts": list, "correctAnswer": int, "questionId": str}, file, f"question {question!r:.40}")
    choices = strings(row["answerTexts"], file, f"question {row['questionId']}")
    if not 0 <= row["correctAnswer"] < len(choices):
        raise UserError(f"{file}: question {row['questionId']} has answer {row['correctAnswer']} of {len(choices)}")
    right = choices[row["correctAnswer"]]
    about = {"letter": LETTERS[row["correctAnswer"]]}
    groups = ("letters in the diagram",) if row.get("abcLabel") else ("texts",)
    return Query(row["questionId"], picture, question, (right,), right, choices=choices, groups=groups, about=about)
