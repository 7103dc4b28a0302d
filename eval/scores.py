"""From answers to ``scores.json``: means, intervals over pictures, baselines (docs/house.md, Scores)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from eval.baselines import constant, question_only
from eval.metrics.interval import interval
from eval.prompts import Arm
from eval.store import Answer
from eval.task import Scorer, Task

FORMAT = 2  # 1 had neither the blank arm nor differences
ARMS = get_args(Arm)
INTERVALS = {"sighted": "interval"}  # keys of the intervals that are not <name>_interval


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
    """Every arm by number of shots: means, what sight and demonstrations add, and 95 % intervals of all of these.

    None where an arm was not asked. ``gain`` is sighted minus blind, ``over_zero_shot`` sighted minus sighted at 0
    shots, question by question, so that their intervals are those of paired differences.
    """
    found: dict[tuple[int, str], dict[str, Answer]] = defaultdict(dict)
    for answer in answers:
        found[answer["shots"], answer["arm"]][answer["id"]] = answer
    return {str(shots): _at(found, shots) for shots in sorted({shots for shots, _ in found})}


def _at(found: Mapping[tuple[int, str], dict[str, Answer]], shots: int) -> dict[str, Any]:
    arms = {arm: found.get((shots, arm), {}) for arm in ARMS}
    zero = found.get((0, "sighted"), {}) if shots else {}
    entry: dict[str, Any] = {}
    for name, ours, theirs in (
        *((arm, of, None) for arm, of in arms.items()),
        ("gain", arms["sighted"], arms["blind"]),
        ("over_zero_shot", arms["sighted"], zero),
    ):
        entry[name], entry[INTERVALS.get(name, f"{name}_interval")] = mean(ours, theirs)
    return entry


def mean(
    ours: Mapping[str, Answer], theirs: Mapping[str, Answer] | None = None
) -> tuple[float | None, list[float] | None]:
    """Mean score and its 95 % interval, or those of the difference on the questions that both answered; None of none.

    Args:
        ours: Answers by id.
        theirs: Answers by id to subtract, if any.
    """
    both = {id: answer for id, answer in ours.items() if theirs is None or id in theirs}
    if not both:
        return None, None
    scores = [answer["score"] - (theirs[id]["score"] if theirs is not None else 0) for id, answer in both.items()]
    return sum(scores) / len(scores), list(interval(scores, [answer["image"] for answer in both.values()]))


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
    """``scores.json`` as a table for a terminal; intervals hold 95 %, ``gain`` is sighted minus blind."""
    columns = ("n", "shots", "sighted", "blind", "blank", "gain", "over 0 shots", "question", "constant")
    lines = [["task", *columns]]
    for name, task in scores["tasks"].items():
        baselines = [number(task.get(key)) for key in ("question_only", "constant")]
        for shots, at in task["shots"].items():
            spans = [span(at, key) for key in ("sighted", "blind", "blank", "gain", "over_zero_shot")]
            lines.append([name, str(task["n"]), shots, *spans, *baselines])
    warnings = [f"{name}: {warning}" for name, task in scores["tasks"].items() for warning in task["warnings"]]
    if shared := scores.get("overlap"):
        told = f"{shared['pictures']} of {shared['trained']} pictures trained on are among {shared['scored']} scored"
        warnings.append(f"overlap: {told}")
    return "\n".join([*aligned(lines), *warnings])


def span(at: Mapping[str, Any], name: str) -> str:
    """A number of an entry with its interval, such as ``31.2 (29.8 to 32.5)``; a dash for none."""
    ends = at.get(INTERVALS.get(name, f"{name}_interval"))
    return number(at.get(name)) + ("" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f})")


def number(value: float | None) -> str:
    """One decimal, a dash for None."""
    return "-" if value is None else f"{value:.1f}"


def aligned(lines: list[list[str]]) -> list[str]:
    """Rows of cells as lines: the first column on the left, the others on the right, those without a value left out."""
    kept = [column for column in zip(*lines, strict=True) if any(cell != "-" for cell in column[1:])]
    widths = [max(map(len, column)) for column in kept]
    first, *others = (
        [cell.rjust(width) if at else cell.ljust(width) for cell in column]
        for at, (column, width) in enumerate(zip(kept, widths, strict=True))
    )
    return ["  ".join(cells).rstrip() for cells in zip(first, *others, strict=True)]
