"""From answers to ``scores.json``: means, intervals over pictures and seeds, baselines (docs/house.md, Scores)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any, get_args

from eval.baselines import constant, question_only
from eval.metrics.interval import interval
from eval.prompts import Arm
from eval.store import Answer
from eval.task import Scorer, Task

FORMAT = 3  # 1 had neither the blank arm nor differences, 2 one seed and nothing dropped
ARMS = get_args(Arm)
DAGGER = "†"  # demonstrations were dropped
Asked = tuple[str, int]  # a question's id, and the seed of its demonstrations
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
    shots, question by question, so that their intervals are those of paired differences. ``seeds`` has the sighted mean
    of each seed of demonstrations and ``deviation`` the standard deviation of these; ``dropped`` counts answers whose
    prompts lost demonstrations to the context, and these demonstrations.
    """
    found: dict[tuple[int, str], dict[Asked, Answer]] = defaultdict(dict)
    for answer in answers:
        found[answer["shots"], answer["arm"]][asked(answer)] = answer
    return {str(shots): _at(found, shots) for shots in sorted({shots for shots, _ in found})}


def asked(answer: Answer) -> Asked:
    """Which question was asked, and with whose demonstrations; an older answer was asked with one seed's."""
    return answer["id"], answer.get("seed", 0)


def _at(found: Mapping[tuple[int, str], dict[Asked, Answer]], shots: int) -> dict[str, Any]:
    arms = {arm: found.get((shots, arm), {}) for arm in ARMS}
    zero = found.get((0, "sighted"), {}) if shots else {}
    entry: dict[str, Any] = {}
    for name, ours, theirs in (
        *((arm, of, None) for arm, of in arms.items()),
        ("gain", arms["sighted"], arms["blind"]),
        ("over_zero_shot", arms["sighted"], zero),
    ):
        entry[name], entry[INTERVALS.get(name, f"{name}_interval")] = mean(ours, theirs)
    means = _seed_means(arms["sighted"].values())
    lost = [len(answer.get("dropped") or ()) for arm in arms.values() for answer in arm.values()]
    return {
        **entry,
        "seeds": {str(seed): score for seed, score in means.items()},
        "deviation": stdev(means.values()) if len(means) > 1 else None,
        "dropped": {"answers": sum(map(bool, lost)), "demonstrations": sum(lost)} if any(lost) else None,
    }


def _seed_means(answers: Iterable[Answer]) -> dict[int, float]:
    scores: dict[int, list[float]] = defaultdict(list)
    for answer in answers:
        scores[asked(answer)[1]].append(answer["score"])
    return {seed: fmean(found) for seed, found in sorted(scores.items())}


def mean(
    ours: Mapping[Asked, Answer], theirs: Mapping[Asked, Answer] | None = None
) -> tuple[float | None, list[float] | None]:
    """Mean score and its 95 % interval, or those of the difference on the questions that both answered; None of none.

    Args:
        ours: Answers by question and seed.
        theirs: Answers to subtract, if any.
    """
    both = [(answer, None) for answer in ours.values()] if theirs is None else paired(ours, theirs)
    if not both:
        return None, None
    scores = [answer["score"] - (other["score"] if other else 0) for answer, other in both]
    pictures, seeds = zip(*((answer["image"], asked(answer)[1]) for answer, _ in both), strict=True)
    return fmean(scores), list(interval(scores, pictures, draws=seeds))


def paired(ours: Mapping[Asked, Answer], theirs: Mapping[Asked, Answer]) -> list[tuple[Answer, Answer]]:
    """Answers to the same question with demonstrations of the same seed.

    Where the second were asked with one seed only, as without demonstrations, they stand beside those of every seed.
    """
    seeds = {seed for _, seed in theirs}
    if len(seeds) == 1:
        [seed] = seeds
        return [(answer, theirs[id, seed]) for (id, _), answer in ours.items() if (id, seed) in theirs]
    return [(answer, theirs[key]) for key, answer in ours.items() if key in theirs]


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
    columns = ("n", "shots", "sighted", "seeds", "blind", "blank", "gain", "over 0 shots", "question", "constant")
    lines = [["task", *columns]]
    for name, task in scores["tasks"].items():
        baselines = [number(task.get(key)) for key in ("question_only", "constant")]
        for shots, at in task["shots"].items():
            spans = [span(at, key) for key in ("blind", "blank", "gain", "over_zero_shot")]
            marked = shots + DAGGER * bool(at.get("dropped"))
            lines.append([name, str(task["n"]), marked, span(at, "sighted"), seeds(at), *spans, *baselines])
    warnings = [f"{name}: {warning}" for name, task in scores["tasks"].items() for warning in task["warnings"]]
    warnings += [told for name, task in scores["tasks"].items() for told in dropped(name, task["shots"])]
    if shared := scores.get("overlap"):
        told = f"{shared['pictures']} of {shared['trained']} pictures trained on are among {shared['scored']} scored"
        warnings.append(f"overlap: {told}")
    return "\n".join([*aligned(lines), *warnings])


def seeds(at: Mapping[str, Any]) -> str:
    """How many seeds a mean is over and their standard deviation, such as ``3, sd 0.4``; a dash for one seed."""
    return "-" if at.get("deviation") is None else f"{len(at['seeds'])}, sd {number(at['deviation'])}"


def dropped(task: str, shots: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the dagger at a number of shots means."""
    return [
        f"{DAGGER} {task} at {count} shots: {at['dropped']['answers']} answers had fewer, as prompts exceeded the "
        f"context; {at['dropped']['demonstrations']} demonstrations were dropped, the earliest first"
        for count, at in shots.items()
        if at.get("dropped")
    ]


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
