"""Stored answers scored anew, and held against their benchmark's files: wrong ones, or another edition, are told."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.metrics.metric import Gold, Metric, metric_class
from eval.scores import FORMAT, by_shots, empty
from eval.store import Answer, companion, key
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


def read_leaks(answers: Path) -> dict[str, frozenset[str]]:
    """Ids of questions that were trained on, by task, as the evaluation of these answers noted; none otherwise."""
    path = companion(answers, "overlap")
    found = read_object(path, "what mm1-eval run noted of its overlap") if path.exists() else {}
    try:
        return {task: frozenset((*of["pictures"], *of["questions"])) for task, of in found.items()}
    except (KeyError, TypeError):
        raise UserError(
            f"{path} has no pictures and questions by task; expected what mm1-eval run noted of its overlap, or no file"
        ) from None


def beside(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the scores beside a file of answers say, with what was scored anew in its place."""
    scored = companion(path, "scores")
    scores = read_scores(scored) if scored.exists() else {"tasks": {}}
    tasks = {name: {**scores["tasks"].get(name, {}), **task} for name, task in found.items()}
    for name, task in tasks.items():
        known = scores["tasks"].get(name, {}).get("warnings") or []
        judged = any(at["sighted"] is not None for at in task["shots"].values())
        kept = [told for told in known if not COUNTED.match(told) and not (judged and told.startswith(WAIT))]
        task["warnings"] = list(dict.fromkeys([*kept, *task["warnings"]]))
    return {**scores, "format": FORMAT, "tasks": tasks}


def gold(answer: Answer) -> Gold:
    """What a metric knows of a stored answer's question."""
    return Gold(
        answer["id"],
        tuple(answer["references"]),
        answer.get("question", ""),
        answer["image"],
        tuple(answer.get("choices", ())),
        tuple(answer.get("groups", ())),
        {name: tuple(given) for name, given in answer.get("versions", {}).items()},
        answer.get("about", {}),
    )


def metric_of(answers: Sequence[Answer]) -> tuple[str, Metric]:
    """Name and metric of the stored answers of one task.

    Raises:
        UserError: They name several, or one that cannot be made of them.
    """
    usual = "vqa_accuracy" if any(answer.get("question") for answer in answers) else "cider"
    named = {str(answer.get("metric") or usual) for answer in answers}
    if len(named) > 1:
        raise UserError(
            f"answers of {answers[0]['task']} name the metrics {' and '.join(sorted(named))}; expected one, as written"
        )
    [name] = named
    try:
        metric = metric_class(name)(list({answer["id"]: gold(answer) for answer in answers}.values()))
    except (KeyError, IndexError) as error:
        raise UserError(
            f"answers of {answers[0]['task']} lack what {name} needs ({error}); expected answers as mm1-eval run wrote "
            f"them"
        ) from None
    for answer in answers:
        metric.remember(answer["id"], answer.get("about", {}))
    return name, metric


def rescore(
    answers: list[Answer],
    leaks: Mapping[str, Collection[str]] | None = None,
    unfinished: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Score stored answers anew, in place, from the references that stand beside them; by task, without baselines.

    Args:
        answers: All of a file.
        leaks: By task, ids of questions that were trained on.
        unfinished: By task, a warning that answers are missing.

    Raises:
        UserError: An answer lacks what its metric wants to know.
    """
    table = {}
    for task, found in by_task(answers).items():
        name, metric = score_anew(found)
        about = {"metric": name, "title": metric.title, "n": len(metric.golds)}
        table[task] = {
            **about,
            "warnings": [
                *[told for of, told in (unfinished or {}).items() if of == task],
                *metric.warnings,
                *empty(found),
            ],
            "shots": by_shots(found, metric, (leaks or {}).get(task, ())),
        }
    return table


def by_task(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Answers by task."""
    tasks: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        tasks[answer["task"]].append(answer)
    return tasks


def score_anew(answers: list[Answer]) -> tuple[str, Metric]:
    """Score the stored answers of one task, in place; name and metric of them.

    Raises:
        UserError: An answer lacks what its metric wants to know.
    """
    name, metric = metric_of(answers)
    for answer in answers:
        answer["score"] = _scored(metric, answer)
    return name, metric


def _scored(metric: Metric, answer: Answer) -> float | None:
    try:
        return metric.score(answer["id"], answer["answer"])
    except (KeyError, IndexError) as error:
        raise UserError(
            f"the answer to question {answer['id']} of {answer['task']} lacks what {metric.name} needs ({error}); "
            f"expected answers as mm1-eval run wrote them"
        ) from None
