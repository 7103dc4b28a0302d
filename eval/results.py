"""Results files as evaluation servers want them: written from answers, and scored here, whoever made them.

VQA v2, OK-VQA, TextVQA   [{"question_id": 262148000, "answer": "red"}]
VizWiz                    [{"image": "VizWiz_test_00000000.jpg", "answer": "red"}]
GQA                       [{"questionId": "201307251", "prediction": "red"}]
captions                  [{"image_id": 391895, "caption": "a man on a motorcycle"}]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.files import Data, check_row
from eval.scores import by_shots
from eval.store import Answer
from eval.task import Query, Task, discover, offers
from mm1.errors import UserError
from mm1.runs import read_json


def submission(answers: Sequence[Answer], data: Data, name: str, shots: int | None = None) -> tuple[list[Any], int]:
    """The rows of a results file, in the order of the benchmark's questions, and how many of them are empty.

    Args:
        answers: Of an evaluation.
        data: The data folder that it was made on.
        name: The benchmark.
        shots: With how many demonstrations; needed where there are answers with several.

    Raises:
        UserError: No answers, answers with several numbers of shots, or questions that were not asked.
    """
    mine = [answer for answer in answers if answer["task"] == name and answer["arm"] == "sighted"]
    counts = sorted({answer["shots"] for answer in mine})
    if not mine or (shots is not None and shots not in counts):
        raise UserError(
            f"there are no sighted answers of {name} at {'any' if shots is None else shots} shots; expected a run of it"
        )
    if shots is None and len(counts) > 1:
        raise UserError(f"{name} was asked with {', '.join(map(str, counts))} shots; expected --shots to name one")
    chosen = counts[0] if shots is None else shots
    first = min(answer.get("seed", 0) for answer in mine if answer["shots"] == chosen)
    said = {a["id"]: a["answer"] for a in mine if a["shots"] == chosen and a.get("seed", 0) == first}
    [task] = discover(data, [name], pictures=False)
    if lacking := [query.id for query in task.queries if query.id not in said]:
        raise UserError(
            f"{len(lacking)} of {len(task.queries)} questions of {name} have no answer, the first is {lacking[0]}; "
            f"expected a run without limit"
        )
    _check_named(task)
    whole = discover(data, [task.submitted_as], pictures=False)[0] if task.submitted_as in _names(data) else task
    rows = [{**_key(query, task), task.answer_field: said.get(query.id, "")} for query in whole.queries]
    return rows, sum(query.id not in said for query in whole.queries)


def grade(file: Path, data: Data, name: str) -> dict[str, Any]:
    """Score a results file; an entry as ``scores.json`` has it, at 0 shots.

    Raises:
        UserError: A file of another shape, ids twice, unknown or missing, or a benchmark whose answers are unpublished.
    """
    [task] = discover(data, [name], pictures=False)
    metric = task.scorer()
    if task.metric == "none":
        raise UserError(
            f"the answers of {name} are not published; expected a split with answers, or its evaluation server"
        )
    found = read_json(file, f"the results of {name}")
    if not isinstance(found, list) or not found:
        kind = "no result" if found == [] else f"a {type(found).__name__}"
        raise UserError(f"{file} holds {kind}; expected a list of results, one of every question")
    [key] = _check_named(task)
    queries = {str(_key(query, task)[key]): query for query in task.queries}
    answers: dict[str, Answer] = {}
    for number, row in enumerate(found, start=1):
        check_row(row, {key: (int, str), task.answer_field: str}, file, f"entry {number}")
        id = str(row[key])
        if id not in queries:
            raise UserError(f"{file} answers {key} {id}, which {name} does not ask; expected results of this split")
        if id in answers:
            raise UserError(f"{file} answers {key} {id} twice; expected every question once")
        query, said = queries[id], row[task.answer_field]
        about = {"shots": 0, "arm": "sighted", "id": query.id, "image": str(query.picture), "answer": said}
        answers[id] = {**about, "score": metric.score(query.id, said)}
    if lacking := [id for id in queries if id not in answers]:
        raise UserError(
            f"{file} answers {len(answers)} of {len(queries)} questions of {name}; expected all, {key} {lacking[0]} "
            f"is not there"
        )
    empty = sum(not answer["answer"].strip() for answer in answers.values())
    told = [f"{empty} of {len(answers)} answers are empty"] if empty else []
    return {
        "metric": task.metric,
        "title": metric.title,
        "n": len(task.queries),
        "warnings": [*task.warnings, *metric.warnings, *told],
        "sources": [dict(of) for of in task.sources],
        "shots": by_shots(answers.values(), metric),
    }


def _names(data: Data) -> set[str]:
    return {offer.name for offer in offers(data)}


def _check_named(task: Task) -> dict[str, Any]:
    """The field that names a question in a results file; refused where it does not tell one question from another."""
    keys = [_key(query, task) for query in task.queries]
    names = [str(value) for key in keys for value in key.values()]
    if len(set(names)) < len(names):
        [field] = keys[0]
        raise UserError(
            f"{task.name} has several questions with {field} {Counter(names).most_common(1)[0][0]}, so that a results "
            f"file does not say which is answered; expected a benchmark with one (docs/evaluation.md)"
        )
    return keys[0]


def _key(query: Query, task: Task) -> dict[str, Any]:
    found = query.about.get("result")
    if not isinstance(found, dict) or len(found) != 1:
        raise UserError(f"{task.name} has no results file; expected a benchmark with one (docs/evaluation.md)")
    return found
