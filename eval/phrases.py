"""Whether a text that was trained on holds a question that is scored: by 13 words in a row, or a short question whole.

Thirteen words are GPT-3's measure (Brown et al. 2020, appendix C). Most questions about pictures are shorter: these are
found where one sentence, or several together, are just the question. Case, punctuation and spaces count for nothing,
nor do the words that prompts put before a question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

GRAM_WORDS = 13
WORD = re.compile(r"[^\W_]+")
MARK = r"(?:short\s+answer|answer|assistant)\s*:"  # may follow a question that has no question mark
SENTENCE_END = re.compile(rf"[.?!:;\"“”\n。？！：；]+|(?<!\w){MARK}", re.IGNORECASE)


def words(text: str) -> tuple[str, ...]:
    """A text as words without case or punctuation."""
    return tuple(WORD.findall(text.casefold()))


class Phrases:
    """Questions to look for in texts.

    Args:
        texts: The questions; those without a word are none.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        spoken = {words(text) for text in texts} - {()}
        self._short = {one for one in spoken if len(one) < GRAM_WORDS}
        self._grams: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for one in spoken - self._short:
            for at in range(len(one) - GRAM_WORDS + 1):
                self._grams.setdefault(one[at : at + GRAM_WORDS], set()).add(one)
        self._starts = {gram[:2] for gram in self._grams}
        self.count = len(spoken)

    def within(self, text: str) -> set[tuple[str, ...]]:
        """The questions that a text holds, as their words."""
        found: set[tuple[str, ...]] = set()
        if self._short:
            found |= self._whole(text)
        if self._grams:
            said = words(text)
            for at in range(len(said) - GRAM_WORDS + 1):
                if said[at : at + 2] in self._starts:
                    found |= self._grams.get(said[at : at + GRAM_WORDS], set())
        return found

    def _whole(self, text: str) -> set[tuple[str, ...]]:
        sentences = [said for part in SENTENCE_END.split(text) if (said := words(part))]
        found = set()
        for at in range(len(sentences)):
            joined: tuple[str, ...] = ()
            for sentence in sentences[at:]:
                joined += sentence
                if len(joined) >= GRAM_WORDS:
                    break
                if joined in self._short:
                    found.add(joined)
        return found
