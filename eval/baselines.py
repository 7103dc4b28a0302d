"""What can be scored without looking: an answer to the question alone, and the best answer to everything."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from eval.metrics.cider import Cider
from eval.task import Query, Task

_Keys = Callable[[Query], Iterable[str]]
LONGEST_START = 4  # words of a question
CANDIDATES, JUDGES = 50, 200  # captions tried as a constant, pictures they are tried on


def question_only(task: Task) -> float | None:
    """Score of looking up the question among answered ones; None where there are no questions to look up.

    The most common answer to exactly this question, else to questions that start with the same 4, 3, 2 words or one,
    else of all. Answers are those of the train part, or of all *other* pictures where there is none.
    """
    if task.kind != "vqa" or task.metric == "none":
        return None
    return _scored(task, lambda query: _keys(query.question))


def constant(task: Task) -> float | None:
    """Score of one answer for everything: the most common one, a typical caption, or chance among choices."""
    if task.metric == "none":
        return None
    if task.kind in ("icl", "choices"):
        chances = [1 / len(query.choices) for query in task.queries if query.choices]
        return 100 * sum(chances) / len(chances) if len(chances) == len(task.queries) else None
    if task.kind == "vqa":
        return _scored(task, lambda query: iter([""]))
    caption = _typical_caption(task.texts or task.train) if task.kind == "captions" else None
    return None if caption is None else _mean(task, {query.id: caption for query in task.queries})


class Lookup:
    """Counts of answers under keys, for every picture too, so that one picture can be left out by subtraction."""

    def __init__(self) -> None:
        self._all: dict[str, Counter[str]] = defaultdict(Counter)
        self._of_picture: dict[tuple[str, Path], Counter[str]] = defaultdict(Counter)

    def add(self, key: str, query: Query) -> None:
        """Count the answer of a query under ``key``."""
        self._all[key][query.answer] += 1
        self._of_picture[key, query.picture][query.answer] += 1

    def best(self, key: str, without: Path) -> str | None:
        """The most common answer under ``key`` on other pictures, the first in the alphabet of equals."""
        own = self._of_picture.get((key, without), Counter())
        left = self._all.get(key, Counter()) - own
        return min(left, key=lambda answer: (-left[answer], answer)) if left else None


def _scored(task: Task, keys: _Keys) -> float | None:
    lookup = Lookup()
    for query in task.texts or task.train or task.whole:
        for key in keys(query):
            lookup.add(key, query)
    answers = {}
    for query in task.queries:
        found = (lookup.best(key, query.picture) for key in keys(query))
        answers[query.id] = next((answer for answer in found if answer is not None), "")
    return _mean(task, answers)


def _keys(question: str) -> Iterator[str]:
    """The question, its first words, nothing: from the narrowest to the widest."""
    words = question.lower().replace("?", " ").split()
    yield " ".join(words) + " ?"
    for count in range(min(LONGEST_START, len(words)), 0, -1):
        yield " ".join(words[:count])
    yield ""


def _typical_caption(pool: tuple[Query, ...]) -> str | None:
    """Of the pool's first captions the one nearest to the captions of other pictures, by CIDEr."""
    judges = pool[:: max(1, len(pool) // JUDGES)][:JUDGES]
    if len(judges) < 2:
        return None
    cider = Cider([judge.references for judge in judges])
    candidates = sorted({judge.answer for judge in judges[:: max(1, len(judges) // CANDIDATES)]})

    def worth(caption: str) -> float:
        return sum(cider.score(at, caption) for at, judge in enumerate(judges) if caption not in judge.references)

    return max(candidates, key=worth)


def _mean(task: Task, answers: dict[str, str]) -> float | None:
    metric = task.scorer()
    scores = {id: score for id, answer in answers.items() if (score := metric.score(id, answer)) is not None}
    if not scores:
        return None
    counts = metric.counts({id: answers[id] for id in scores}, scores)
    number = float(metric.value(np.array(list(counts.values()), dtype=float).sum(axis=0)))
    return None if math.isnan(number) else number
