"""Multiple choice as single benchmarks read it: their own scripts' quirks, kept so that numbers compare."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from eval.metrics.choice import LETTERS, Choice
from eval.metrics.metric import Gold
from eval.metrics.yes_no import PopeF1

WAYS = ("random", "popular", "adversarial")
# How a letter may stand among the words of an answer, tried in this order (MMBench's script).
FRAMES = "{} {}. {}, {}: {}) {}). ({}) ({}). :{} :{}, :{}. :{}) :{})."


class ScienceQA(Choice):
    """Accuracy of ScienceQA as LLaVA's script counts it: an answer is a letter, or begins with ``B. ``.

    Or it says "The answer is B" once. All else is wrong, also the right choice in words.
    """

    name = "scienceqa"

    def read(self, id: str, answer: str) -> str | None:
        """The letter, by these rules alone; any of A to E, whether there is such a choice or not."""
        text, known = answer.strip(), LETTERS[:5]
        if len(text) == 1 and text in known:
            return text
        if len(text) >= 3 and text[0] in known and text[1:3] == ". ":
            return text[0]
        said = re.findall(r"The answer is ([A-Z]).", text)
        return said[0] if len(said) == 1 else None


class MMBench(Choice):
    """Accuracy of MMBench with its script's exact matching; what it would then ask a language model about is wrong.

    The script looks for one letter standing alone among the words (an "A" in more than three words may be an article),
    then with punctuation, then for the text of one choice inside the answer.
    """

    name = "mmbench"

    def chosen(self, id: str, choice: str) -> str:
        """The likeliest choice's letter: beside words of the choice another letter may stand, such as ``A``."""
        return super().chosen(id, choice)[0]

    def read(self, id: str, answer: str) -> str | None:
        """The letter, if exactly one is found."""
        words = answer.split()
        for at, frame in enumerate(FRAMES.split()):
            found = [letter for letter in LETTERS[:5] if frame.format(letter) in words]
            article = at == 0 and "A" in words and len(words) > 3
            if len(found) == 1 and not article:
                return found[0]
        inside = [
            letter
            for letter, choice in zip(LETTERS, self.golds[id].choices, strict=False)
            if choice.lower() in answer.lower()
        ]
        return inside[0] if len(inside) == 1 else None


class MMBenchCircular(MMBench):
    """The share of questions that are answered right in every turn of their choices."""

    name = "mmbench_circular"
    title = "accuracy, all turns right, %"

    def __init__(self, golds: Sequence[Gold]) -> None:
        super().__init__(golds)
        turns = Counter(str(gold.about["turns_of"]) for gold in golds)
        whole = {str(gold.about["turns_of"]): len(gold.choices) for gold in golds}
        if cut := sum(turns[name] < whole[name] for name in turns):
            self.warnings.append(f"{cut} of {len(turns)} questions lack turns (limit): the score is too high")

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """Questions right in all turns that were asked, and questions; booked on the first turn asked."""
        turns: dict[str, list[str]] = defaultdict(list)
        for id in scores:
            turns[str(self.golds[id].about["turns_of"])].append(id)
        counted: dict[str, Sequence[float]] = dict.fromkeys(scores, (0.0, 0.0))
        for ids in turns.values():
            counted[ids[0]] = (100.0 * all(scores[id] == 100 for id in ids), 1.0)
        return counted

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """Accuracy over all turns by themselves."""
        right = [self.score(id, answer) for id, answer in answers.items()]
        return {"accuracy, each turn by itself": sum(right) / len(right), **super().also(answers)}


class Pope(PopeF1):
    """The mean of F1 over the ways to ask (random, popular, adversarial), as tables give it."""

    name = "pope"
    title = "F1 × 100, mean of three"

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """True yes, false yes, false no and answers of each way."""
        counted: dict[str, Sequence[float]] = {}
        for id, answer in answers.items():
            of = np.zeros((len(WAYS), 4))
            of[WAYS.index(self.golds[id].groups[0])] = [*self._count(id, answer)[:3], 1]
            counted[id] = tuple(of.flatten())
        return counted

    def value(self, sums_K: np.ndarray) -> np.ndarray:
        """The mean over ways that were asked."""
        ways = sums_K.reshape(*sums_K.shape[:-1], len(WAYS), 4)
        f1_W, asked_W = super().value(ways), ways[..., 3] > 0
        with np.errstate(invalid="ignore"):
            return np.asarray((f1_W * asked_W).sum(axis=-1) / asked_W.sum(axis=-1))
