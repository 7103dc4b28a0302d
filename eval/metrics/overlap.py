"""BLEU-1 to 4 and ROUGE-L of captions, on the same tokens as CIDEr, as coco-caption counts them.

BLEU (Papineni et al. 2002) is of the whole set: counts are added up, the nearest length among the references is the
reference's. ROUGE-L (Lin 2004) takes the best precision and the best recall over the references, each for itself, with
beta 1.2, and is meaned. Both hold what coco-caption adds to counts that are zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

LONGEST = 4
SMALL, TINY = 1e-9, 1e-15  # what coco-caption adds to what is divided by, and to what is divided
BETA = 1.2


def caption_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to 4 and ROUGE-L of captions, times 100.

    Args:
        candidates: Tokens of one caption by picture, separated by blanks.
        references: Tokens of the reference captions by picture.
    """
    counts = np.array([bleu_counts(said, references[id]) for id, said in candidates.items()], dtype=float)
    rouge = [rouge_l(said, references[id]) for id, said in candidates.items()]
    named = {f"BLEU-{n}": 100 * value for n, value in enumerate(bleu(counts.sum(axis=0)), start=1)}
    return named | {"ROUGE-L": 100 * sum(rouge) / len(rouge)}


def bleu_counts(candidate: str, references: Sequence[str]) -> tuple[int, ...]:
    """Of one caption: words, words of the nearest reference, n-grams that match and n-grams there are, n = 1 to 4."""
    words, others = candidate.split(), [reference.split() for reference in references]
    nearest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    matches, guesses = [], []
    for n in range(1, LONGEST + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= _ngrams(other, n)
        matches.append((_ngrams(words, n) & most).total())
        guesses.append(max(0, len(words) - n + 1))
    return (len(words), nearest, *matches, *guesses)


def bleu(sums_K: np.ndarray) -> list[float]:
    """BLEU-1 to 4 of added-up :func:`bleu_counts`, 0 to 1."""
    length, nearest = sums_K[0], sums_K[1]
    ratio = (length + TINY) / (nearest + SMALL)
    brevity = math.exp(1 - 1 / ratio) if 0 < ratio < 1 else float(ratio > 0)
    product, found = 1.0, []
    for n in range(1, LONGEST + 1):
        product *= (sums_K[1 + n] + TINY) / (sums_K[1 + LONGEST + n] + SMALL)
        found.append(product ** (1 / n) * brevity)
    return found


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption, 0 to 1."""
    words, others = candidate.split(" "), [reference.split(" ") for reference in references]
    shared = [common(words, other) for other in others]
    precision = max(count / len(words) for count in shared)
    recall = max(count / len(other) for count, other in zip(shared, others, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common(words: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bits (Hyyrö 2004): a zero bit for each word of it."""
    places: Counter[str] = Counter()
    for at, word in enumerate(words):
        places[word] |= 1 << at
    left = whole = (1 << len(words)) - 1
    for word in others:
        here = left & places[word]
        left = (left + here) | (left - here)
    return len(words) - (left & whole).bit_count()


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
