"""Multiple choice: which letter a written answer means, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from eval.metrics.metric import Gold, Metric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SAID = r"(?i:answer|option|choice)(?i:\s+is)?\s*[:\-]?\s*[*\"'(\[]*"


class Choice(Metric):
    """Accuracy of choices. The right one is named by ``about["letter"]``, or by its text among the references."""

    name = "choice"
    title = "accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """100 or 0; an answer that names no choice is wrong."""
        return 100.0 * (self.read(id, answer) in right_letters(self.golds[id]))

    def read(self, id: str, answer: str) -> str | None:
        """The letter that an answer means, None where it names no choice."""
        return letter_of(answer, self.golds[id].choices)

    def chosen(self, id: str, choice: str) -> str:
        """The likeliest choice with its letter, ``B. red``."""
        return f"{LETTERS[self.golds[id].choices.index(choice)]}. {choice}"

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """The share of answers that name no choice."""
        unread = [self.read(id, answer) is None for id, answer in answers.items()]
        return {"named no choice, %": 100 * sum(unread) / len(unread)} if any(unread) else {}

    def explain(self, id: str, answer: str) -> list[str]:
        """The choices, what was read, what is right."""
        gold = self.golds[id]
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, gold.choices, strict=False)]
        read = self.read(id, answer) or "no choice"
        right = " or ".join(sorted(right_letters(gold)))
        return [*lines, f"answer {answer!r}", f"read as {read}", f"right is {right}", *super().explain(id, answer)]


def right_letters(gold: Gold) -> set[str]:
    """Letters of the right choices."""
    if named := gold.about.get("letter"):
        return {str(named)}
    return {letter for letter, choice in zip(LETTERS, gold.choices, strict=False) if choice in gold.references}


def letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that an answer names, if it names one.

    Looked for in this order: ``B`` or ``(b)`` alone; a capital letter at the start with ``.``, ``)``, ``:`` or ``,``
    after it; "the answer is B", "Answer: (B)"; one letter in parentheses; the text of one choice.

    >>> letter_of("The answer is (B).", ["red", "blue"])
    'B'
    >>> letter_of("A dog", ["a cat", "a dog"])
    'B'
    """
    text, known = answer.strip(), LETTERS[: len(choices)]
    if not known:
        return None
    one = f"[{known}]"
    alone = re.fullmatch(rf"[\W_]*({one})[\W_]*", text, re.IGNORECASE)
    if alone:
        return alone[1].upper()
    for pattern in (rf"\W*({one})[.):,\]*](?!\w)", rf"\(({one})\)\s", rf".*?{SAID}({one})(?![\w'])(?!\s+[a-z])"):
        if found := re.match(pattern, text, re.DOTALL):
            return found[1]
    inside = set(re.findall(rf"\(({one})\)", text))
    if len(inside) == 1:
        return str(inside.pop())
    return _by_text(text, choices)


def _by_text(text: str, choices: Sequence[str]) -> str | None:
    """The choice whose text is the answer, else the only one whose text stands in it."""
    said = _plain(text)
    same = [letter for letter, choice in zip(LETTERS, choices, strict=False) if said and _plain(choice) == said]
    within = [
        letter
        for letter, choice in zip(LETTERS, choices, strict=False)
        if _plain(choice) and re.search(rf"(?<!\w){re.escape(_plain(choice))}(?!\w)", said)
    ]
    return next((found[0] for found in (same, within) if len(found) == 1), None)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .\"'*")
