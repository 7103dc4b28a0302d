"""Yes-or-no questions: F1 of POPE (Li et al. 2023, arXiv 2305.10355), points of MME (Fu et al. 2023, 2306.13394)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from eval.metrics.metric import Gold, Metric

PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]


class YesNo(Metric):
    """Answers that are read as yes or no, each by the benchmark's own :meth:`read`."""

    @staticmethod
    def read(answer: str) -> str:
        """What an answer is taken for."""
        raise NotImplementedError

    def score(self, id: str, answer: str) -> float:
        """100 where the answer is right."""
        return 100.0 * (self.read(answer) == self.golds[id].references[0].strip().lower())

    def explain(self, id: str, answer: str) -> list[str]:
        """As what it is read."""
        told = [f"answer {answer!r}", f"read as {self.read(answer)}", f"right is {self.golds[id].references[0]}"]
        return [*told, *super().explain(id, answer)]


class PopeF1(YesNo):
    """F1 of "yes", with accuracy, precision, recall and the share of yes beside it."""

    name = "pope_f1"
    title = "F1 × 100"

    @staticmethod
    def read(answer: str) -> str:
        """As POPE does."""
        return pope_answer(answer)

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """True and false yes, false and true no."""
        return {id: self._count(id, answer) for id, answer in answers.items()}

    def value(self, sums_K: np.ndarray) -> np.ndarray:
        """F1 x 100; 0 where nothing is a true yes."""
        hits, false_yes, false_no = sums_K[..., 0], sums_K[..., 1], sums_K[..., 2]
        return np.asarray(200 * hits / np.maximum(2 * hits + false_yes + false_no, 1))

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """What POPE's table has beside F1."""
        hits, false_yes, false_no, passed = np.sum([self._count(id, answer) for id, answer in answers.items()], axis=0)
        return {
            "accuracy": 100 * float((hits + passed) / len(answers)),
            "precision": 100 * float(hits / max(hits + false_yes, 1)),
            "recall": 100 * float(hits / max(hits + false_no, 1)),
            "yes, %": 100 * float((hits + false_yes) / len(answers)),
        }

    def _count(self, id: str, answer: str) -> tuple[float, ...]:
        said, right = pope_answer(answer) == "yes", self.golds[id].references[0].strip().lower() == "yes"
        return tuple(map(float, (said and right, said and not right, right and not said, not said and not right)))


class Mme(YesNo):
    """Points of MME: of each of 14 subtasks accuracy plus accuracy+, the share of pictures with both questions right.

    2000 points of perception and 800 of cognition together; ``also`` has the two sums. The subtask of a question is
    its first group, its pair the other question about the same picture there.
    """

    name = "mme"
    title = "points"

    def __init__(self, golds: Sequence[Gold]) -> None:
        super().__init__(golds)
        self._subtasks = list(dict.fromkeys(gold.groups[0] for gold in golds))
        pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
        for gold in golds:
            pairs[gold.groups[0], gold.picture].append(gold.id)
        self._pairs = {ids[0]: ids for ids in pairs.values()}
        if odd := sum(len(ids) != 2 for ids in self._pairs.values()):
            self.warnings.append(f"{odd} of {len(pairs)} pictures have not two questions each, as MME's have")

    @staticmethod
    def read(answer: str) -> str:
        """As MME does."""
        return mme_answer(answer)

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """Of each subtask: right answers, answers, pictures with all right, pictures; booked on a picture's first."""
        counted: dict[str, Sequence[float]] = {}
        for id in answers:
            of = np.zeros(4 * len(self._subtasks))
            at = 4 * self._subtasks.index(self.golds[id].groups[0])
            of[at], of[at + 1] = scores[id] / 100, 1
            if asked := [one for one in self._pairs.get(id, ()) if one in scores]:
                of[at + 2], of[at + 3] = all(scores[one] == 100 for one in asked), 1
            counted[id] = tuple(of)
        return counted

    def value(self, sums_K: np.ndarray) -> np.ndarray:
        """Points; subtasks without an answer add none."""
        return np.asarray(sum(self._points(sums_K, at) for at in range(len(self._subtasks))))

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """Perception and cognition."""
        counts = self.counts(answers, {id: self.score(id, answer) for id, answer in answers.items()})
        sums_K = np.sum([counts[id] for id in answers], axis=0)
        points = {name: float(self._points(sums_K, at)) for at, name in enumerate(self._subtasks)}
        halves = {"perception": PERCEPTION, "cognition": COGNITION}
        return {
            half: sum(points[name] for name in names if name in points)
            for half, names in halves.items()
            if any(name in points for name in names)
        }

    @staticmethod
    def _points(sums_K: np.ndarray, at: int) -> np.ndarray:
        right, asked, both, pictures = (sums_K[..., 4 * at + of] for of in range(4))
        return 100 * right / np.maximum(asked, 1) + 100 * both / np.maximum(pictures, 1)


def pope_answer(text: str) -> str:
    """POPE's own reading: of the first sentence, ``no`` where it holds "No", "no" or "not", ``yes`` else."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_answer(text: str) -> str:
    """MME's own reading: ``yes`` or ``no`` where the first four letters have it, ``other`` else."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"
