"""Visual question answering: VQA v2's own files, and DAQUAR's questions with one answer each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, rows
from eval.metrics.vqa import majority
from eval.task import Offer, Query, Task
from mm1.errors import UserError
from mm1.runs import read_object

ONE_ANSWER = "one annotated answer a question: the score is exact match after the official processing"


def find(data: Data) -> list[Offer]:
    """One task for each folder of ``vqa/``; those with files under their original names are another's."""
    folders = [folder for folder in sorted((data.folder / "vqa").glob("*")) if folder.is_dir()]
    own = [folder for folder in folders if _known(folder) or not _annotated(folder)]
    return [Offer(f"vqa/{folder.name}", partial(_task, folder)) for folder in own]


def _known(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("test_questions.json", "questions.json", "test.jsonl"))


def _annotated(folder: Path) -> bool:
    return any(folder.rglob("*.json"))


def _task(folder: Path) -> Task:
    for read, questions, train in (
        (_v2, "test_questions.json", "train_questions.json"),
        (_v2, "questions.json", "train_questions.json"),
        (_daquar, "test.jsonl", "train.jsonl"),
    ):
        if (folder / questions).exists():
            scored = read(folder / questions)
            pool = read(folder / train) if (folder / train).exists() else ()
            single = all(len(query.references) == 1 for query in scored)
            return Task(f"vqa/{folder.name}", "vqa", scored, pool, (ONE_ANSWER,) if single else ())
    raise UserError(f"{folder} holds no questions; expected questions.json and annotations.json, or test.jsonl")


def _v2(path: Path) -> tuple[Query, ...]:
    """Questions joined with their annotations by ``question_id``."""
    annotations = path.with_name(path.name.replace("questions", "annotations"))
    answers = {
        row["question_id"]: tuple(_answers(row, annotations))
        for row in rows(annotations, "annotations", {"question_id": ID, "answers": list})
    }
    subtype = read_object(path, "VQA v2 questions").get("data_subtype", "train2014")
    queries = []
    for row in rows(path, "questions", {"question_id": ID, "image_id": int, "question": str}):
        given = answers.get(row["question_id"])
        if not given:
            raise UserError(f"{annotations} has no answers to question {row['question_id']} of {path.name}")
        picture = path.parent / "images" / f"COCO_{subtype}_{row['image_id']:012d}.jpg"
        about = {"result": {"question_id": row["question_id"]}}
        queries.append(Query(str(row["question_id"]), picture, row["question"], given, majority(given), about=about))
    check_ids((query.id for query in queries), path)
    return tuple(queries)


def _answers(row: Any, path: Path) -> list[str]:
    given = [answer.get("answer") if isinstance(answer, dict) else None for answer in row["answers"]]
    answers = [answer for answer in given if isinstance(answer, str)]
    if len(answers) < len(given):
        raise UserError(
            f"{path}: the answers of question {row['question_id']} are {row['answers']!r:.60}; "
            f'expected a list of {{"answer": text}}'
        )
    return answers


def _daquar(path: Path) -> tuple[Query, ...]:
    """One question a line; blanks inside an answer are written ``_``."""
    queries = [
        Query(str(row["question_id"]), path.parent / row["image"], row["question"], (answer,), answer, about=about)
        for row in rows(path, None, {"question_id": ID, "question": str, "answer": str, "image": str})
        for answer in [row["answer"].replace("_", " ")]
        for about in [{"rationale": row["rationale"]} if isinstance(row.get("rationale"), str) else {}]
    ]
    check_ids((query.id for query in queries), path)
    return tuple(queries)
