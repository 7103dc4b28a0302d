"""From answers to ``scores.json``: means, intervals over pictures, baselines (docs/house.md, Scores)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from eval.baselines import constant, question_only
from eval.metrics.interval import interval
from eval.prompts import Arm
from eval.store import Answer
from eval.task import Scorer, Task

FORMAT = 2  # 1 had neither the blank arm nor differences
ARMS = get_args(Arm)
INTERVALS = {"sighted": "interval", "blind": "blind_interval", "blank": "blank_interval"}


def of_task(task: Task, answers: Iterable[Answer]) -> dict[str, Any]:
    """The entry of one task, from all its answers."""
    return {
        "metric": task.metric,
        "n": len(task.queries),
        "warnings": [*task.warnings, *task.scorer().warnings],
        "shots": by_shots(answers),
        "question_only": question_only(task),
        "constant": constant(task),
    }


def by_shots(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval of every arm by number of shots; None where an arm was not asked."""
    found: dict[int, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        found[answer["shots"]][answer["arm"]].append(answer)
    table = {}
    for shots, of in sorted(found.items()):
        means = {arm: _mean(of[arm]) for arm in ARMS}
        table[str(shots)] = {arm: mean for arm, (mean, _) in means.items()} | {
            INTERVALS[arm]: ends for arm, (_, ends) in means.items()
        }
    return table


def rescore(answers: list[Answer]) -> dict[str, dict[str, Any]]:
    """Score stored answers anew, in place, from the references that stand beside them; by task, without baselines."""
    tasks: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        tasks[answer["task"]].append(answer)
    table = {}
    for name, found in tasks.items():
        metric = "cider" if not any(answer.get("question") for answer in found) else "vqa_accuracy"
        scorer = Scorer(metric, {answer["id"]: answer["references"] for answer in found}.items())
        for answer in found:
            answer["score"] = scorer(answer["id"], answer["answer"])
        n = len({answer["id"] for answer in found})
        table[name] = {"metric": metric, "n": n, "warnings": scorer.warnings, "shots": by_shots(found)}
    return table


def table(scores: dict[str, Any]) -> str:
    """``scores.json`` as a small table for a terminal."""
    lines = [f"{'task':<32}{'n':>6}{'shots':>7}{'sighted':>10}{'95 %':>17}{'blind':>8}{'question':>10}{'constant':>10}"]
    for name, task in scores["tasks"].items():
        baselines = "".join(f"{_number(task.get(key)):>10}" for key in ("question_only", "constant"))
        for shots, at in task["shots"].items():
            span = "" if at["interval"] is None else f"{at['interval'][0]:.1f} to {at['interval'][1]:.1f}"
            sighted, blind = _number(at["sighted"]), _number(at["blind"])
            lines.append(f"{name:<32}{task['n']:>6}{shots:>7}{sighted:>10}{span:>17}{blind:>8}{baselines}")
    warnings = [f"{name}: {warning}" for name, task in scores["tasks"].items() for warning in task["warnings"]]
    return "\n".join([*lines, *warnings])


def _mean(answers: list[Answer]) -> tuple[float | None, list[float] | None]:
    if not answers:
        return None, None
    scores = [answer["score"] for answer in answers]
    return sum(scores) / len(scores), list(interval(scores, [Path(answer["image"]) for answer in answers]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
