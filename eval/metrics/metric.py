"""What a metric is: it knows what is right of every question of a task, scores one answer, and makes a number of all.

A metric is one class in a file of this folder, or anywhere: a task names it by its ``name`` or by its import path.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np

from mm1.errors import UserError


@dataclass(frozen=True, slots=True)
class Gold:
    """What is right of one question, and what a metric may want to know of it.

    Args:
        id: Unique within its task.
        references: What people answered; empty where nobody says.
        question: The question, empty for a caption.
        picture: What tells its picture from others.
        choices: The possible answers of multiple choice, in their order.
        groups: Names of sub-scores that it counts in.
        versions: Other references, by the name of the field they stand in.
        about: All else that its file says, plain values.
    """

    id: str
    references: tuple[str, ...]
    question: str = ""
    picture: str = ""
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


class Metric(ABC):
    """Scores answers to the questions of one task.

    The number of a task is ``value(sum of counts)``: a mean by default. A metric that is none, such as an F1, says what
    is counted of its answers and what becomes of the sums; intervals then follow by themselves.

    Args:
        golds: Every question scored.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # what its number is, for a heading: "VQA accuracy, %"

    def __init__(self, golds: Sequence[Gold]) -> None:
        self.golds = {gold.id: gold for gold in golds}
        self.warnings: list[str] = []

    @abstractmethod
    def score(self, id: str, answer: str) -> float | None:
        """Score of one answer by itself, in percent where nothing else is said; None of what nobody can score here."""

    def of(self, golds: Sequence[Gold]) -> Metric:
        """The metric of some of its questions, such as a sub-score's: by default as if these were all."""
        return type(self)(golds)

    def chosen(self, id: str, choice: str) -> str:
        """How the likeliest of a question's choices is written down as its answer."""
        return choice

    def remember(self, id: str, about: Mapping[str, Any]) -> None:  # noqa: B027  (most have nothing to learn)
        """Learn what was found out about a question's answers after they were given, such as a judge's opinion.

        Args:
            id: The question.
            about: ``about`` as it stands beside a stored answer.
        """

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """What is counted of each answer, K numbers; they are added up over answers.

        Args:
            answers: By question id.
            scores: What :meth:`score` said of them.
        """
        return {id: (score, 1.0) for id, score in scores.items()}

    def value(self, sums_K: np.ndarray) -> np.ndarray:
        """The task's number from sums of counts, ``[..., K]`` to ``[...]``; nan where it has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums_K[..., 0] / sums_K[..., 1])

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """Further numbers of the same answers, by name."""
        return {}

    def explain(self, id: str, answer: str) -> list[str]:
        """How the score of one answer came about, a step a line."""
        return [f"score {_told(self.score(id, answer))}"]


class Unscored(Metric):
    """Of a split whose answers are not published: answers are kept for a submission."""

    name = "none"
    title = "not scored"

    def score(self, id: str, answer: str) -> None:
        """Nothing."""
        return

    def explain(self, id: str, answer: str) -> list[str]:
        """That nobody knows."""
        return ["the answers of this split are not published: mm1-eval submission writes the file to hand in"]


def metric_class(name: str) -> type[Metric]:
    """The class of a metric, by its ``name`` or its import path (``my_package.metrics.Mine``).

    Raises:
        UserError: There is none.
    """
    known = _known()
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise UserError(f"metric {name} is none; expected one of {', '.join(sorted(known))} or the path of a Metric")
    return found


@cache
def _known() -> dict[str, type[Metric]]:
    package = importlib.import_module("eval.metrics")
    for module in pkgutil.iter_modules(package.__path__, "eval.metrics."):
        importlib.import_module(module.name)
    classes = Metric.__subclasses__()
    for found in classes:
        classes += found.__subclasses__()
    return {
        found.name: found for found in classes if found.__module__.startswith("eval.metrics.") and "name" in vars(found)
    }


def _told(score: float | None) -> str:
    return "none" if score is None else f"{score:.1f}"
