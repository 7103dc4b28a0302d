"""Accuracy of MMMU (Yue et al. 2023), with the reading of answers by its own script (``eval_utils.py``).

Of multiple choice the last letter that stands in the answer counts, ``(B)`` before ``B`` before ``B.``; an answer of
more than five words may also name a choice by its text. Where nothing is found the script draws a letter at random,
one sequence for all subjects; here the draw is a function of the question's id, so that it is the same in any order.
Of an open answer the ends of its sentences count ("so ..", "is ..", "= .."), and every number in them, to two places.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from eval.metrics.choice import LETTERS
from eval.metrics.metric import Metric

INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset(":,.!?;'")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,000
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1e-5
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 3.5
)


class Mmmu(Metric):
    """Accuracy over all questions, as MMMU's overall number; sub-scores are subjects and their six fields."""

    name = "mmmu"
    title = "accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """100 or 0."""
        gold = self.golds[id]
        if gold.choices:
            return 100.0 * (self.letter(id, answer) == gold.about["letter"])
        return 100.0 * is_right(answer, gold.references)

    def chosen(self, id: str, choice: str) -> str:
        """The likeliest choice's letter."""
        return LETTERS[self.golds[id].choices.index(choice)]

    def letter(self, id: str, answer: str) -> str:
        """The letter that an answer is read as, drawn where it names none."""
        choices = self.golds[id].choices
        return letter_of(answer, choices) or random.Random(f"mmmu/{id}").choice(LETTERS[: len(choices)])

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """The share of multiple choice whose letter had to be drawn."""
        chosen = {id: answer for id, answer in answers.items() if self.golds[id].choices}
        drawn = [letter_of(answer, self.golds[id].choices) is None for id, answer in chosen.items()]
        return {"letter drawn, %": 100 * sum(drawn) / len(drawn)} if any(drawn) else {}

    def explain(self, id: str, answer: str) -> list[str]:
        """As what the answer is read."""
        gold = self.golds[id]
        if not gold.choices:
            read = ", ".join(sorted(repr(one) for one in readings(answer)))
            return [f"answer {answer!r}", f"read as {read}", f"right is {' or '.join(gold.references)}"]
        found = letter_of(answer, gold.choices)
        told = f"read as {found}" if found else f"names no choice, drawn: {self.letter(id, answer)}"
        return [f"answer {answer!r}", told, f"right is {gold.about['letter']}", *super().explain(id, answer)]


def letter_of(answer: str, choices: tuple[str, ...]) -> str | None:
    """The letter of a choice that the answer names by the script's rules."""
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    known = LETTERS[: len(choices)]
    for frame, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in known if frame.format(letter) in text]:
            return max(found, key=lambda letter: (text.rfind(place.format(letter)), -known.index(letter)))
    if len(text.split()) > 5:
        places = {letter: text.lower().rfind(choice.lower()) for letter, choice in zip(known, choices, strict=True)}
        if any(place >= 0 for place in places.values()):
            return max(places, key=lambda letter: (places[letter], -known.index(letter)))
    return None


def is_right(answer: str, references: tuple[str, ...]) -> bool:
    """Whether a reference stands in what an open answer is read as; a number where it is equal to two places."""
    right = {one for reference in references for one in normalized(reference)}
    said = readings(answer)
    texts = [one for one in right if isinstance(one, str)]
    return any(one in right if isinstance(one, float) else any(text in one for text in texts) for one in said)


def readings(answer: str) -> set[str | float]:
    """All that an open answer may mean: the ends of its sentences, and the numbers in them."""
    ends = _ends(answer)
    numbers = [number for end in ends for pattern in NUMBERS for number in re.findall(pattern, end)]
    return {one for text in (*ends, *numbers) for one in normalized(text)}


def normalized(text: str) -> list[str | float]:
    """A number to two places; a text in lower case, of one letter with a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _ends(answer: str) -> list[str]:
    """Of each line the shortest stretch behind an indicator; the whole where there is none.

    The script means to split sentences too, by a capital letter, but has made all letters small before.
    """
    text = answer.strip().strip(".").lower()
    lines, found = text.split("\n"), []
    for at, line in enumerate(lines):
        indicators = (*INDICATORS, "=") if at == len(lines) - 1 else INDICATORS
        shortest = ""
        for indicator in indicators:
            end = line.split(indicator)[-1].strip() if indicator in line else None
            if end is not None and (not shortest or len(end) < len(shortest)):
                shortest = end
        if shortest and shortest not in TRIVIAL:
            found.append(shortest)
    return found or [text]
