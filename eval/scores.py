"""From answers to ``scores.json``: means, intervals over pictures and seeds, baselines (docs/house.md, Scores)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, get_args

import numpy as np

from eval.baselines import constant, question_only
from eval.metrics.interval import RESAMPLES, interval_of
from eval.metrics.metric import Metric
from eval.prompts import Arm
from eval.store import Answer
from eval.task import Task

FORMAT = 3  # 1 had neither the blank arm nor differences, 2 one seed, nothing dropped, no sub-scores and no sources
ARMS = get_args(Arm)
DAGGER = "†"  # demonstrations were dropped
Asked = tuple[str, int]  # a question's id, and the seed of its demonstrations
GROUP_RESAMPLES = 1000  # of the interval of a sub-score, of which there may be many
INTERVALS = {"sighted": "interval"}  # keys of the intervals that are not <name>_interval


def of_task(task: Task, answers: Iterable[Answer], leaks: Collection[str] = ()) -> dict[str, Any]:
    """The entry of one task, from all its answers, scored anew: earlier code may have made them.

    Args:
        task: The task.
        answers: All to it.
        leaks: Ids of questions that were trained on.
    """
    metric, answers = task.scorer(), list(answers)
    for answer in answers:
        metric.remember(answer["id"], answer.get("about", {}))
    answers = [{**answer, "score": metric.score(answer["id"], answer["answer"])} for answer in answers]
    return {
        "metric": task.metric,
        "title": metric.title,
        "n": len(task.queries),
        "warnings": [*task.warnings, *metric.warnings, *empty(answers)],
        "sources": [dict(of) for of in task.sources],
        "shots": by_shots(answers, metric, leaks),
        "question_only": question_only(task),
        "constant": constant(task),
    }


def by_shots(
    answers: Iterable[Answer], metric: Metric | None = None, leaks: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Every arm by number of shots: the task's number, what sight and demonstrations add, 95 % intervals of all.

    None where an arm was not asked. ``gain`` is sighted minus blind, ``over_zero_shot`` sighted minus sighted at 0
    shots, on the questions that both answered, so that their intervals are those of paired differences. ``seeds`` has
    the sighted number of each seed of demonstrations and ``deviation`` the standard deviation of these; ``dropped``
    counts answers whose prompts lost demonstrations to the context, and these demonstrations. ``groups`` has the arms
    of each sub-score, made as a task of its own; ``also`` further numbers of each arm. ``clean`` is the sighted number
    without questions that were trained on, where there are such.

    Args:
        answers: All of one task.
        metric: What made their scores; a mean if None.
        leaks: Ids of questions that were trained on.
    """
    found: dict[tuple[int, str], dict[Asked, Answer]] = defaultdict(dict)
    for answer in answers:
        found[answer["shots"], answer["arm"]][asked(answer)] = answer
    groups = _groups(metric) if metric else {}
    return {
        str(shots): _at(found, shots, metric, groups) | _clean(found.get((shots, "sighted"), {}), metric, leaks)
        for shots in sorted({shots for shots, _ in found})
    }


def _clean(answers: Mapping[Asked, Answer], metric: Metric | None, leaks: Collection[str]) -> dict[str, Any]:
    kept = {key: answer for key, answer in answers.items() if key[0] not in leaks}
    clean, ends = mean(kept, None, metric) if len(kept) < len(answers) else (None, None)
    return {"clean": clean, "clean_interval": ends, "clean_n": len({id for id, _ in kept}) if ends else None}


def asked(answer: Answer) -> Asked:
    """Which question was asked, and with whose demonstrations; an older answer was asked with one seed's."""
    return answer["id"], answer.get("seed", 0)


def _at(
    found: Mapping[tuple[int, str], dict[Asked, Answer]],
    shots: int,
    metric: Metric | None,
    groups: Mapping[str, Metric],
) -> dict[str, Any]:
    arms = {arm: found.get((shots, arm), {}) for arm in ARMS}
    zero = found.get((0, "sighted"), {}) if shots else {}
    entry: dict[str, Any] = {}
    for name, ours, theirs in (
        *((arm, of, None) for arm, of in arms.items()),
        ("gain", arms["sighted"], arms["blind"]),
        ("over_zero_shot", arms["sighted"], zero),
    ):
        entry[name], entry[INTERVALS.get(name, f"{name}_interval")] = mean(ours, theirs, metric)
    by_seed = {seed: mean(of, None, metric, resamples=0)[0] for seed, of in _by_seed(arms["sighted"]).items()}
    means = {seed: score for seed, score in by_seed.items() if score is not None}
    lost = [len(answer.get("dropped") or ()) for arm in arms.values() for answer in arm.values()]
    entry |= {
        "seeds": {str(seed): score for seed, score in means.items()},
        "deviation": stdev(means.values()) if len(means) > 1 else None,
        "dropped": {"answers": sum(map(bool, lost)), "demonstrations": sum(lost)} if any(lost) else None,
    }
    if metric and (also := {arm: more for arm, of in arms.items() if (more := _also(metric, of))}):
        entry["also"] = also
    if groups:
        entry["groups"] = {name: _group(of, arms) for name, of in groups.items()}
    return entry


def _by_seed(answers: Mapping[Asked, Answer]) -> dict[int, dict[Asked, Answer]]:
    found: dict[int, dict[Asked, Answer]] = defaultdict(dict)
    for key, answer in answers.items():
        found[key[1]][key] = answer
    return dict(sorted(found.items()))


def _also(metric: Metric, answers: Mapping[Asked, Answer]) -> dict[str, float]:
    """Further numbers of one arm, meaned over seeds of demonstrations."""
    found = [metric.also({id: answer["answer"] for (id, _), answer in of.items()}) for of in _by_seed(answers).values()]
    return (
        {name: fmean(more[name] for more in found) for name in found[0] if all(name in of for of in found)}
        if found
        else {}
    )


def _groups(metric: Metric) -> dict[str, Metric]:
    """The metric of each sub-score, with the questions of that group alone."""
    names = dict.fromkeys(name for gold in metric.golds.values() for name in gold.groups)
    return {name: metric.of([gold for gold in metric.golds.values() if name in gold.groups]) for name in names}


def _group(metric: Metric, arms: Mapping[str, Mapping[Asked, Answer]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"n": len(metric.golds)}
    for arm, answers in arms.items():
        inside = {key: answer for key, answer in answers.items() if key[0] in metric.golds}
        anew = {key: {**answer, "score": metric.score(key[0], answer["answer"])} for key, answer in inside.items()}
        entry[arm], entry[INTERVALS.get(arm, f"{arm}_interval")] = mean(anew, None, metric, GROUP_RESAMPLES)
        if any(answer.get("dropped") for answer in inside.values()):
            entry["dropped"] = True
    return entry


def mean(
    ours: Mapping[Asked, Answer],
    theirs: Mapping[Asked, Answer] | None = None,
    metric: Metric | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float | None, list[float] | None]:
    """The number of some answers and its 95 % interval, or those of the difference on the questions both answered.

    None of no answers, and of answers that nobody can score.

    Args:
        ours: Answers by question and seed.
        theirs: Answers to subtract, if any.
        metric: What makes a number of them; the mean of their scores if None.
        resamples: Of the interval; 0 if none is wanted.
    """
    scored = {key: answer for key, answer in ours.items() if answer["score"] is not None}
    both = [(answer, answer) for answer in scored.values()] if theirs is None else paired(scored, theirs)
    if not both:
        return None, None
    counts_QK = _counts([answer for answer, _ in both], metric)
    alone = value = metric.value if metric else _mean
    if theirs is not None:
        width = counts_QK.shape[1]
        counts_QK = np.concatenate([counts_QK, _counts([other for _, other in both], metric)], axis=1)

        def value(sums_K: np.ndarray) -> np.ndarray:
            return alone(sums_K[..., :width]) - alone(sums_K[..., width:])

    number = float(value(counts_QK.sum(axis=0)))
    if math.isnan(number):
        return None, None
    pictures, seeds = zip(*((answer["image"], asked(answer)[1]) for answer, _ in both), strict=True)
    return number, list(
        interval_of(value, counts_QK, pictures, draws=seeds, resamples=resamples)
    ) if resamples else None


def paired(ours: Mapping[Asked, Answer], theirs: Mapping[Asked, Answer]) -> list[tuple[Answer, Answer]]:
    """Answers to the same question with demonstrations of the same seed.

    Where the second were asked with one seed only, as without demonstrations, they stand beside those of every seed.
    """
    seeds = {seed for _, seed in theirs}
    if len(seeds) == 1:
        [seed] = seeds
        return [(answer, theirs[id, seed]) for (id, _), answer in ours.items() if (id, seed) in theirs]
    return [(answer, theirs[key]) for key, answer in ours.items() if key in theirs]


def _counts(answers: Sequence[Answer], metric: Metric | None) -> np.ndarray:
    """What is counted of each answer, ``[Q, K]``; questions that belong together do so within a seed."""
    if metric is None:
        return np.array([(answer["score"], 1.0) for answer in answers], dtype=float)
    counted: dict[Asked, Sequence[float]] = {}
    for seed, of in _by_seed({asked(answer): answer for answer in answers}).items():
        said = {id: answer["answer"] for (id, _), answer in of.items()}
        counts = metric.counts(said, {id: answer["score"] for (id, _), answer in of.items()})
        counted |= {(id, seed): one for id, one in counts.items()}
    return np.array([counted[asked(answer)] for answer in answers], dtype=float)


def _mean(sums_K: np.ndarray) -> np.ndarray:
    return np.asarray(sums_K[..., 0] / sums_K[..., 1])


def empty(answers: Sequence[Answer]) -> list[str]:
    """Warnings that answers are empty, or had to be scored whole."""
    count = sum(not answer["answer"].strip() for answer in answers)
    lost = sum(answer.get("taken") is False for answer in answers)
    return [f"{count} of {len(answers)} answers are empty"] * bool(count) + [
        f"in {lost} of {len(answers)} there was no answer to extract: all that was said was scored"
    ] * bool(lost)


def table(scores: dict[str, Any]) -> str:
    """``scores.json`` as a table for a terminal; intervals hold 95 %, ``gain`` is sighted minus blind."""
    columns = (
        "n",
        "shots",
        "sighted",
        "seeds",
        "clean",
        "blind",
        "blank",
        "gain",
        "over 0 shots",
        "question",
        "constant",
    )
    lines, also = [["task", *columns]], list[str]()
    for name, task in scores["tasks"].items():
        baselines = [number(task.get(key)) for key in ("question_only", "constant")]
        for shots, at in task["shots"].items():
            marked = shots + DAGGER * bool(at.get("dropped"))
            lines.append([name, str(task["n"]), marked, *_arms(at), *baselines])
            for group, of in at.get("groups", {}).items():
                fewer = shots + DAGGER * bool(of.get("dropped"))
                lines.append([f"  {group}", str(of["n"]), fewer, *_arms(of), "-", "-"])
            for arm, more in at.get("also", {}).items():
                told = ", ".join(f"{of} {number(value)}" for of, value in more.items())
                also.append(f"{name} at {marked} shots, {arm}: {told}")
    warnings = [f"{name}: {warning}" for name, task in scores["tasks"].items() for warning in task["warnings"]]
    warnings += [told for name, task in scores["tasks"].items() for told in dropped(name, task["shots"])]
    if shared := scores.get("overlap"):
        told = f"{shared['pictures']} of {shared['trained']} pictures trained on are among {shared['scored']} scored"
        warnings.append(f"overlap: {told}")
        if shared.get("questions_scored"):
            told = f"{shared['questions']} of {shared['questions_scored']} scored questions stand in texts trained on"
            warnings.append(f"overlap: {told}")
    return "\n".join([*aligned(lines), *also, *warnings])


def _arms(at: Mapping[str, Any]) -> list[str]:
    """Cells of what was asked."""
    clean = f"{span(at, 'clean')}, n {at['clean_n']}" if at.get("clean") is not None else "-"
    return [
        span(at, "sighted"),
        seeds(at),
        clean,
        *(span(at, key) for key in ("blind", "blank", "gain", "over_zero_shot")),
    ]


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
