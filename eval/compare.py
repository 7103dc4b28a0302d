"""Two models, or two arms, on the same questions: the paired difference and how sure it is.

Paired, since most of what makes scores vary is which question is asked, and that is the same on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from eval.again import metric_of
from eval.scores import DAGGER, Asked, aligned, asked, mean, paired
from eval.store import Answer
from mm1.errors import UserError


@dataclass(frozen=True, slots=True)
class Difference:
    """One task at one number of shots.

    Args:
        task: Name of the task.
        shots: Number of demonstrations.
        n: Questions that both answered.
        ours: Mean score of the first on them.
        theirs: Mean score of the second.
        difference: First minus second.
        interval: 95 % of it, over pictures, and over seeds of demonstrations where there are several.
        dropped: Whether an answer on either side was asked with fewer demonstrations, for want of context.
    """

    task: str
    shots: int
    n: int
    ours: float
    theirs: float
    difference: float
    interval: tuple[float, float]
    dropped: bool = False


def compare(
    ours: list[Answer], theirs: list[Answer], arm: str = "sighted", other_arm: str = "sighted"
) -> list[Difference]:
    """Differences by task and shots, where both have answers.

    Args:
        ours: Answers of the first.
        theirs: Answers of the second.
        arm: Which arm of the first.
        other_arm: Which arm of the second; ``blank`` is the natural one of a model that was trained without pictures.

    Raises:
        UserError: They answered no question in common, or their scores cannot be compared: references differ, or
            captions were scored over different pictures, from which CIDEr takes its weights.
    """
    first, second = _by_task(ours, arm), _by_task(theirs, other_arm)
    common = [at for at in first if at in second]
    if not common:
        raise UserError(
            f"the {arm} answers of the first and the {other_arm} answers of the second share no task and shots "
            f"with scores; expected two runs of mm1-eval on the same benchmarks (--arm, --other_arm), judged "
            f"where those want a judge"
        )
    return [_difference(*at, first[at], second[at]) for at in common]


def told(differences: list[Difference]) -> str:
    """A table for a terminal."""
    lines = [["task", "n", "shots", "first", "second", "difference", "95 %"]]
    for row in differences:
        ends = f"{row.interval[0]:+.1f} to {row.interval[1]:+.1f}"
        means = [f"{row.ours:.1f}", f"{row.theirs:.1f}", f"{row.difference:+.1f}"]
        lines.append([row.task, str(row.n), str(row.shots) + DAGGER * row.dropped, *means, ends])
    lost = [f"{DAGGER} some answers had fewer demonstrations: their prompts exceeded the context"]
    return "\n".join([*aligned(lines), *lost * any(row.dropped for row in differences)])


def _by_task(answers: list[Answer], arm: str) -> dict[tuple[str, int], dict[Asked, Answer]]:
    found: dict[tuple[str, int], dict[Asked, Answer]] = defaultdict(dict)
    for answer in answers:
        if answer["arm"] == arm and answer["score"] is not None:  # nobody judged those
            found[answer["task"], answer["shots"]][asked(answer)] = answer
    return found


def _difference(task: str, shots: int, ours: dict[Asked, Answer], theirs: dict[Asked, Answer]) -> Difference:
    first, second = ({id for id, _ in answers} for answers in (ours, theirs))
    both, common = paired(ours, theirs), first & second
    captions = not any(answer.get("question") for answer in ours.values())
    if not common or (captions and not common == first == second):
        raise UserError(
            f"{task} at {shots} shots: the first answered {len(first)} questions, the second {len(second)}, "
            f"{len(common)} of them in common; expected the same, of captions all, which weigh CIDEr's words (limit)"
        )
    if not both:
        seeds = [sorted({seed for _, seed in answers}) for answers in (ours, theirs)]
        raise UserError(f"{task} at {shots} shots: the seeds are {seeds[0]} and {seeds[1]}; expected some in common")
    if changed := [answer["id"] for answer, other in both if answer["references"] != other["references"]]:
        raise UserError(f"{task}: question {min(changed)} has other references in the second; expected the same data")
    kinds = [sorted({str(answer.get("metric") or "usual") for answer in of.values()}) for of in (ours, theirs)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{task} has metric {kinds[0][0]} in the first and {kinds[1][0]} in the second; expected one")
    metric = metric_of(list(ours.values()))[1] if any(answer.get("metric") for answer in ours.values()) else None
    sides = ({asked(pair[side]): pair[side] for pair in both} for side in (0, 1))
    means = [mean(answers, None, metric, resamples=0)[0] or 0.0 for answers in sides]
    difference, ends = mean(ours, theirs, metric)
    assert difference is not None
    assert ends is not None
    n = len({answer["id"] for answer, _ in both})
    lost = any(answer.get("dropped") for answers in both for answer in answers)
    return Difference(task, shots, n, means[0], means[1], difference, (ends[0], ends[1]), lost)
