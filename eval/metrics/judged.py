"""Answers that a judge reads: LLaVA-Bench and MM-Vet, scored by one, and MathVista, whose answers one may extract.

A metric says what a judge is asked about an answer and what its words are worth; who is asked, and in which words, is
:mod:`eval.judge`'s affair. Opinions stand beside the stored answers, so that scoring reruns without the judge.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.metrics.choice import LETTERS, letter_of
from eval.metrics.metric import Metric
from eval.metrics.text import distance

JUDGEMENTS = "judgements"  # key of ``about`` beside a stored answer: opinions by mark of the answer


def mark(answer: str) -> str:
    """A name for an answer's text."""
    return hashlib.sha256(answer.encode()).hexdigest()[:16]


class Judged(Metric):
    """A metric that a judge's opinions go into."""

    def remember(self, id: str, about: Mapping[str, Any]) -> None:
        """Take in opinions that stand beside a stored answer."""
        if (known := about.get(JUDGEMENTS)) and id in self.golds:
            gold = self.golds[id]
            merged = {**gold.about.get(JUDGEMENTS, {}), **known}
            self.golds[id] = replace(gold, about={**gold.about, JUDGEMENTS: merged})

    def judgement(self, id: str, answer: str) -> str | None:
        """What a judge wrote about an answer, if one was asked."""
        found = self.golds[id].about.get(JUDGEMENTS, {}).get(mark(answer))
        return None if found is None else str(found["text"])

    @abstractmethod
    def asks(self, id: str, answer: str) -> dict[str, str] | None:
        """What a judge has to know of an answer, by the names that wordings use; None where none is needed."""

    @abstractmethod
    def readable(self, text: str) -> bool:
        """Whether a judge's words can be used."""

    def explain(self, id: str, answer: str) -> list[str]:
        """What the judge wrote."""
        said = self.judgement(id, answer)
        return [f"answer {answer!r}", f"judge: {said}" if said else "not judged", *super().explain(id, answer)]


class LlavaBench(Judged):
    """LLaVA-Bench in the wild: what a judge gives our answers as a share of what it gives the reference's, in percent.

    The judge writes two numbers from 1 to 10 on its first line, the reference answer's and ours.
    """

    name = "llava_bench"
    title = "relative score, %"

    def score(self, id: str, answer: str) -> float | None:
        """Ours of 100, not relative; None where nobody judged it."""
        found = self._pair(id, answer)
        return None if found is None else 10 * found[1]

    def counts(self, answers: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, Sequence[float]]:
        """What both answers got."""
        pairs = {id: self._pair(id, answers[id]) for id in scores}
        return {id: (pair[1], pair[0]) if pair else (0.0, 0.0) for id, pair in pairs.items()}

    def value(self, sums_K: np.ndarray) -> np.ndarray:
        """Their ratio in percent."""
        return 100 * super().value(sums_K)

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """How many answers were judged."""
        return {"judged": float(sum(self._pair(id, answer) is not None for id, answer in answers.items()))}

    def asks(self, id: str, answer: str) -> dict[str, str]:
        """Context, question, and both answers."""
        gold = self.golds[id]
        known = {"question": gold.question, "reference": gold.references[0], "answer": answer}
        return {**known, "context": str(gold.about.get("context", ""))}

    def readable(self, text: str) -> bool:
        """Whether the first line has two numbers and no third."""
        return two_scores(text) is not None

    def _pair(self, id: str, answer: str) -> tuple[float, float] | None:
        said = self.judgement(id, answer)
        return None if said is None else two_scores(said)


class MmVet(Judged):
    """MM-Vet: the mean of correctness from 0 to 1 that a judge gives, in percent; sub-scores are capabilities."""

    name = "mm_vet"
    title = "score, %"

    def score(self, id: str, answer: str) -> float | None:
        """In percent; None where nobody judged it."""
        said = self.judgement(id, answer)
        found = None if said is None else correctness(said)
        return None if found is None else 100 * found

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """How many answers were judged."""
        return {"judged": float(sum(self.score(id, answer) is not None for id, answer in answers.items()))}

    def asks(self, id: str, answer: str) -> dict[str, str]:
        """Question, what is right, and the answer in one line."""
        gold = self.golds[id]
        right = gold.references[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return {"question": gold.question, "reference": right, "answer": " ".join(answer.split()), "context": ""}

    def readable(self, text: str) -> bool:
        """Whether it begins with a number from 0 to 1."""
        return correctness(text) is not None


class MathVista(Judged):
    """Accuracy of MathVista: the answer is extracted, brought to the type asked for, and compared as text.

    The release's script has a language model extract what is no plain answer already; without a judge rules do
    (:func:`extracted`). Of multiple choice the choice most alike counts, as the script has it.
    """

    name = "mathvista"
    title = "accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """100 or 0."""
        found = self.read(id, answer)
        return 100.0 * (found is not None and found.strip() == self.golds[id].references[0].strip())

    def read(self, id: str, answer: str) -> str | None:
        """The answer as it is compared; None where it has not the type asked for."""
        about = self.golds[id].about
        found = plain(answer, about)
        if found is None:
            found = self.judgement(id, answer)
        return typed(extracted(answer, about) if found is None else found, about)

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """The share of answers from which nothing of the right type was read."""
        unread = [self.read(id, answer) is None for id, answer in answers.items()]
        return {"not read, %": 100 * sum(unread) / len(unread)} if any(unread) else {}

    def asks(self, id: str, answer: str) -> dict[str, str] | None:
        """Question and answer, unless the answer is plain already."""
        gold = self.golds[id]
        if not answer.strip() or plain(answer, gold.about) is not None:
            return None
        return {"question": gold.question, "reference": "", "answer": answer, "context": ""}

    def readable(self, text: str) -> bool:
        """Whether it says anything."""
        return bool(text.strip())

    def explain(self, id: str, answer: str) -> list[str]:
        """As what the answer is read."""
        right = self.golds[id].references[0]
        return [*super().explain(id, answer), f"read as {self.read(id, answer)!r}", f"right is {right!r}"]


def two_scores(text: str) -> tuple[float, float] | None:
    """The two numbers of the first line, from 0 to 10; None where there are more, as in "Assistant 1: 8"."""
    first = text.strip().split("\n")[0]
    found = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", first)]
    return (found[0], found[1]) if len(found) == 2 and all(0 <= number <= 10 for number in found) else None


def correctness(text: str) -> float | None:
    """The number from 0 to 1 that a judgement begins with."""
    words = text.split()
    try:
        found = float(words[0]) if words else -1.0
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


def plain(answer: str, about: Mapping[str, Any]) -> str | None:
    """An answer that needs no extraction: a choice, or a number of the type asked for."""
    text = answer.strip()
    if about["question_type"] == "multi_choice":
        return text if text in about["choices"] else None
    try:
        if about["answer_type"] == "integer":
            return str(int(text))
        if about["answer_type"] == "float":
            return str(float(text))
    except ValueError:
        pass
    return None


def extracted(answer: str, about: Mapping[str, Any]) -> str:
    """An answer found by rules: what follows "answer is" or "Answer:", then the last of what the type can be.

    >>> extracted("They are 3 and 4, so the answer is 7.", {"question_type": "free_form", "answer_type": "integer"})
    '7'
    """
    text = answer.strip()
    said = re.findall(r"(?i)(?:answer|value|result)\s*(?:is|:|=)\s*(.+)", text)
    tail = said[-1].strip() if said else text
    if about["question_type"] == "multi_choice":
        letter = letter_of(tail, about["choices"]) or letter_of(text, about["choices"])
        return f"({letter})" if letter else tail.strip(" .")
    pattern = r"\[[^\[\]]*\]" if about["answer_type"] == "list" else r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+"
    for place in (tail, text):
        if found := re.findall(pattern, place):
            pick = found[0] if place is tail and said else found[-1]
            return str(pick if about["answer_type"] == "list" else pick.replace(",", ""))
    return tail


def typed(found: str, about: Mapping[str, Any]) -> str | None:
    """An extracted answer as the release's script brings it to the type asked for."""
    text, choices = found.strip(), about["choices"]
    if about["question_type"] == "multi_choice":
        named = re.findall(r"\(([a-zA-Z])\)", text)
        text = named[0].upper() if named else text
        known = LETTERS[: len(choices)]
        if len(text) == 1 and text in known:
            return str(choices[known.index(text)])
        return str(min(choices, key=lambda choice: distance(text, choice)))
    try:
        if about["answer_type"] == "integer":
            return str(int(float(text)))
        if about["answer_type"] == "float":
            return str(round(float(text), int(about["precision"])))
    except (ValueError, OverflowError):
        return None
    return text
