"""LLaVA-Bench in the wild (Liu et al. 2023, 2304.08485) and MM-Vet (Yu et al. 2023, 2308.02490): long answers.

Nobody scores them without a judge: a run stores answers, ``mm1-eval judge`` asks one (:mod:`eval.judge`).
LLaVA-Bench: ``questions.jsonl``, ``context.jsonl``, ``answers_gpt4.jsonl`` and ``images/``. MM-Vet: ``mm-vet.json``
and ``images/``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, check_row, rows
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

TOLD = ("answers wait for a judge: mm1-eval judge (docs/evaluation.md)",)
CATEGORIES = {"conv": "conversation", "detail": "detail", "complex": "complex"}


def find(data: Data) -> list[Offer]:
    """``llava-bench/wild`` and ``mm-vet``, where their files are."""
    offers = []
    asked = [path for path in data.named(r"questions\.jsonl") if path.with_name("context.jsonl").is_file()]
    if len(asked) > 1:
        raise UserError(f"{asked[0]} and {asked[1]} both stand in {data.folder}; expected one of them (--data)")
    offers += [Offer("llava-bench/wild", partial(_wild, data, path)) for path in asked]
    if (path := data.one(r"mm-vet\.json")) is not None:
        offers.append(Offer("mm-vet", partial(_vet, data, path)))
    return offers


def _wild(data: Data, path: Path) -> Task:
    answers_at, context_at = path.with_name("answers_gpt4.jsonl"), path.with_name("context.jsonl")
    found = list(rows(path, None, {"question_id": ID, "image": str, "text": str, "category": str}))
    check_ids((str(row["question_id"]) for row in found), path)
    answers = {row["question_id"]: row["text"] for row in rows(answers_at, None, {"question_id": ID, "text": str})}
    contexts = {row["image"]: row["caption"] for row in rows(context_at, None, {"image": str, "caption": str})}
    pictures = data.placed(["llava-bench"], path, [[row["image"]] for row in found], "images")
    queries = []
    for row, picture in zip(found, pictures, strict=True):
        if row["question_id"] not in answers or row["image"] not in contexts:
            at = answers_at if row["question_id"] not in answers else context_at
            raise UserError(f"{at} has nothing for question {row['question_id']} about {row['image']}; expected it")
        answer, category = answers[row["question_id"]], CATEGORIES.get(row["category"], row["category"])
        about = {"context": contexts[row["image"]], "result": {"question_id": row["question_id"]}}
        queries.append(
            Query(str(row["question_id"]), picture, row["text"], (answer,), answer, groups=(category,), about=about)
        )
    files = tuple(source(at) for at in (path, answers_at, context_at))
    return Task("llava-bench/wild", "open", tuple(queries), (), TOLD, metric="llava_bench", sources=files)


def _vet(data: Data, path: Path) -> Task:
    found = read_object(path, "MM-Vet's questions by id")
    for id, row in found.items():
        check_row(row, {"imagename": str, "question": str, "answer": str, "capability": list}, path, f"question {id}")
    pictures = data.placed(["mm-vet"], path, [[row["imagename"]] for row in found.values()], "images")
    queries = [_vet_query(id, row, picture) for (id, row), picture in zip(found.items(), pictures, strict=True)]
    return Task("mm-vet", "open", tuple(queries), (), TOLD, metric="mm_vet", sources=(source(path),))


def _vet_query(id: str, row: Any, picture: Path) -> Query:
    groups = tuple(dict.fromkeys(str(skill) for skill in row["capability"]))
    about = {"result": {"question_id": id}}
    return Query(id, picture, row["question"], (row["answer"],), row["answer"], groups=groups, about=about)
