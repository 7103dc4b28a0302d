"""Text that says the same again and again: menus, logs, pages made to be found (arXiv 2112.11446, A.1.1)."""

from __future__ import annotations

import re

import numpy

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps.base import Pictures, Step

LINE_END = re.compile(r"\n+")
PARAGRAPH_END = re.compile(r"\n\s*\n")


class Repetition(Step):
    """Refuses text that says the same again: the rules and bounds of MassiveText (arXiv 2112.11446, table A1).

    Shares of characters count those of words and not the blanks between. An n-gram that stands once is no repetition,
    however long; where occurrences overlap, what they cover counts once.

    Args:
        min_words: Shorter documents are left alone, since two words alike are a large part of a caption.
        lines: The largest share of lines that stood there before.
        line_characters: The largest share of characters in them.
        paragraphs: The largest share of paragraphs that stood there before.
        paragraph_characters: The largest share of characters in them.
        top: For the most frequent 2-, 3-, ... gram, the largest share of characters that it covers.
        repeated: For all 5-, 6-, ... grams that stand more than once, the largest share that they cover together.
    """

    def __init__(
        self,
        *,
        min_words: int = 50,
        lines: float = 0.30,
        line_characters: float = 0.20,
        paragraphs: float = 0.30,
        paragraph_characters: float = 0.20,
        top: tuple[float, ...] = (0.20, 0.18, 0.16),
        repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    ) -> None:
        self.min_words = min_words
        self.parts = (
            (LINE_END, "lines", lines, line_characters),
            (PARAGRAPH_END, "paragraphs", paragraphs, paragraph_characters),
        )
        self.top = dict(enumerate(top, start=2))
        self.repeated = dict(enumerate(repeated, start=5))

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        text = draft.text
        words = text.split()
        if len(words) < self.min_words:
            return draft
        for end, what, most, most_characters in self.parts:
            parts, characters = repeated_parts([part.strip() for part in end.split(text) if part.strip()])
            if parts > most or characters > most_characters:
                return Rejection(draft.id, f"repeated {what}", fault=False)
        for n, (top, repeated) in repeated_ngrams(words, max([*self.top, *self.repeated], default=1)).items():
            if top > self.top.get(n, 1) or repeated > self.repeated.get(n, 1):
                return Rejection(draft.id, f"repeated {n}-grams", fault=False)
        return draft


def repeated_parts(parts: list[str]) -> tuple[float, float]:
    """Which share of lines or paragraphs stood there before, and which share of the characters is in those."""
    if not parts:
        return 0.0, 0.0
    characters = sum(map(len, parts))
    return 1 - len(set(parts)) / len(parts), 1 - sum(map(len, set(parts))) / characters


def repeated_ngrams(words: list[str], longest: int) -> dict[int, tuple[float, float]]:
    """For n from 2 to ``longest``: the share of characters in the top n-gram, and in all that stand more than once.

    An n-gram is a number: that of the (n-1)-gram that it begins with, and that of its last word. No hash, no collision.
    """
    numbers: dict[str, int] = {}
    word_N = numpy.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=numpy.int64)
    ends_N = numpy.cumsum([0, *map(len, words)])
    found: dict[int, tuple[float, float]] = {}
    gram_N = word_N
    for n in range(2, min(longest, len(words)) + 1):
        pairs = gram_N[:-1] * len(words) + word_N[n - 1 :]
        _, gram_N, counts = numpy.unique(pairs, return_inverse=True, return_counts=True)
        top = gram_N == counts.argmax() if counts.max() > 1 else numpy.zeros(len(gram_N), dtype=bool)
        found[n] = _covered(top, n, ends_N), _covered(counts[gram_N] > 1, n, ends_N)
    return found


def _covered(starts: numpy.ndarray, n: int, ends_N: numpy.ndarray) -> float:
    """The share of characters in words that an n-gram with one of these starts covers."""
    change = numpy.zeros(len(ends_N), dtype=numpy.int64)
    at = numpy.flatnonzero(starts)
    change[at] += 1
    change[at + n] -= 1
    covered = numpy.cumsum(change)[:-1] > 0
    return float((numpy.diff(ends_N) * covered).sum() / ends_N[-1])
