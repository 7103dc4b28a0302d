"""Stored answers held against the files of their benchmark: another edition of these, or a wrong one, is found out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.scores import FORMAT
from eval.store import LEAKS, Answer, key
from eval.task import Query, Task
from mm1.errors import UserError
from mm1.runs import read_object, read_scores

# Warnings that are of the answers and not of the benchmark's files: they are counted anew.
COUNTED = re.compile(
    r"\d+ of \d+ (?:answers are|questions lack turns|pictures have not)|in \d+ of \d+ there was no|CIDEr over n ="
)
WAIT = "answers wait for a judge"


def once(answers: Sequence[Answer], path: Path) -> None:
    """Refuse a file that answers a question twice: nobody could say which counts.

    Raises:
        UserError: The first such question.
    """
    for (task, shots, arm, id, seed), count in Counter(map(key, answers)).items():
        if count > 1:
            raise UserError(
                f"{path} has {count} {arm} answers to question {id} of {task} at {shots} shots with seed {seed}; "
                f"expected one"
            )


def refer(answers: Sequence[Answer], tasks: Sequence[Task], path: Path) -> None:
    """Give answers, in place, what the files say now of their questions: references, choices, groups.

    Args:
        answers: All of a file.
        tasks: The benchmarks of a data folder.
        path: The file.

    Raises:
        UserError: Answers to a benchmark or a question that there is not, or to one that asks something else.
    """
    known = {task.name: ({query.id: query for query in task.whole}, task) for task in tasks}
    if absent := {answer["task"] for answer in answers} - known.keys():
        raise UserError(f"{path} answers {min(absent)}; expected some of {', '.join(known)}, which --data holds")
    for name, (queries, _) in known.items():
        ids = {answer["id"] for answer in answers if answer["task"] == name}
        if unknown := sorted(ids - queries.keys()):
            raise UserError(
                f"{path} answers {len(unknown)} questions that {name} does not have, such as {unknown[0]}; expected "
                f"answers to its {len(queries)} questions alone (--data)"
            )
    for answer in answers:
        queries, task = known[answer["task"]]
        query = queries[answer["id"]]
        _same_question(answer, query, path)
        for name in ("metric", "choices", "groups", "versions", "about"):
            answer.pop(name, None)
        answer |= gold_of(task, query)


def _same_question(answer: Answer, query: Query, path: Path) -> None:
    """Ids alone do not tell: those of one dataset, or of its older version, may be another's."""
    asked, asks = answer.get("question", query.question), query.question
    if not asks and not asked:  # of a caption the picture says what was asked
        asked, asks = Path(answer["image"]).name, query.picture.name
    if asked != asks:
        raise UserError(
            f"{path} answers {asked!r:.60} under the id {query.id} of {answer['task']}, where --data has {asks!r:.60}; "
            f"expected the files that were asked, or a version of them with other references alone"
        )


def stored_metric(task: Task) -> str:
    """The metric's name as it stands beside answers: empty for the usual one."""
    return "" if task.metric == task.usual_metric else task.metric


def gold_of(task: Task, query: Query) -> dict[str, Any]:
    """What of a question is stored with its answer, so that it can be scored without the data."""
    found: dict[str, Any] = {"metric": stored_metric(task)}
    found |= {"choices": list(query.choices), "groups": list(query.groups)}
    found |= {"versions": {name: list(given) for name, given in query.versions.items()}, "about": dict(query.about)}
    return {"references": list(query.references), **{name: value for name, value in found.items() if value}}


def read_leaks(folder: Path) -> dict[str, frozenset[str]]:
    """Ids of questions that were trained on, by task, as an evaluation that counted them noted; none otherwise."""
    path = folder / LEAKS
    found = read_object(path, "what mm1-eval run noted of its overlap") if path.exists() else {}
    try:
        return {task: frozenset((*of["pictures"], *of["questions"])) for task, of in found.items()}
    except (KeyError, TypeError):
        raise UserError(
            f"{path} has no pictures and questions by task; expected what mm1-eval run noted of its overlap, or no file"
        ) from None


def beside(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What ``scores.json`` beside a file of answers says, with what was scored anew in its place."""
    scored = path.with_name("scores.json")
    scores = read_scores(scored) if scored.exists() else {"tasks": {}}
    tasks = {name: {**scores["tasks"].get(name, {}), **task} for name, task in found.items()}
    for name, task in tasks.items():
        known = scores["tasks"].get(name, {}).get("warnings") or []
        judged = any(at["sighted"] is not None for at in task["shots"].values())
        kept = [told for told in known if not COUNTED.match(told) and not (judged and told.startswith(WAIT))]
        task["warnings"] = list(dict.fromkeys([*kept, *task["warnings"]]))
    return {**scores, "format": FORMAT, "tasks": tasks}
