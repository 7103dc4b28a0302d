"""CIDEr as captioning papers report it: the CIDEr-D of coco-caption (Vedantam et al. 2015, arXiv 1411.5726, section 4).

An n-gram weighs more the fewer pictures' references contain it, so a score depends on *which* references it was made
with: this scorer takes them from the pictures scored, as everyone does, and says so.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.metrics.metric import Gold, Metric
from eval.metrics.overlap import caption_scores
from eval.metrics.tokenize import tokenize

LONGEST = 4
SHOWN = 12  # n-grams in an explanation
SIGMA_WORDS = 6.0  # a caption this much longer or shorter than its reference loses 39 % of its score

Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """The tf-idf weights of one caption, its norm for each n, and its length as the official scorer counts it."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int


class CiderScore(Metric):
    """CIDEr x 100 of every caption, over the pictures of the task."""

    name = "cider"
    title = "CIDEr × 100"

    def __init__(self, golds: Sequence[Gold]) -> None:
        super().__init__(golds)
        self._tokens = {gold.id: [tokenize(caption) for caption in gold.references] for gold in golds}
        self._cider = Cider(list(self._tokens.values()), tokenized=True)
        self._index = {gold.id: index for index, gold in enumerate(golds)}
        self.warnings.append(self._cider.warning)

    def score(self, id: str, answer: str) -> float:
        """CIDEr x 100."""
        return self._cider.score(self._index[id], tokenize(answer))

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """BLEU-1 to 4 and ROUGE-L of the same tokens."""
        return caption_scores({id: tokenize(answer) for id, answer in answers.items()}, self._tokens)

    def explain(self, id: str, answer: str) -> list[str]:
        """Tokens, what each reference is worth, and which n-grams the score is made of."""
        said, index = tokenize(answer), self._index[id]
        shares = sorted(self._cider.shares(index, said).items(), key=lambda share: -share[1])
        worth = zip(self._tokens[id], self._cider.by_reference(index, said), strict=True)
        return [
            f"tokens     {said}",
            *(f"reference  {alike:6.1f}  {tokens}" for tokens, alike in worth),
            "n-grams that the score is made of, what each adds:",
            *(f"           {share:6.1f}  {' '.join(ngram)}" for ngram, share in shares[:SHOWN]),
            f"score {self._cider.score(index, said):.1f}, the mean over references",
        ]


class Cider:
    """Scores captions against the references of a fixed set of pictures.

    Args:
        references: For each picture its reference captions, at least one. Tokens separated by blanks when
            ``tokenized``, ordinary text otherwise.
        tokenized: Whether references and candidates were tokenised before.
    """

    def __init__(self, references: Sequence[Sequence[str]], tokenized: bool = False) -> None:
        self._tokenize = str.strip if tokenized else tokenize
        counts = [[self._ngrams(caption) for caption in captions] for captions in references]
        self.n = len(counts)
        self._log_n = math.log(max(self.n, 1))
        self._frequency = Counter(ngram for captions in counts for ngram in set().union(*captions))
        self._references = [[self._vector(count) for count in captions] for captions in counts]

    @property
    def warning(self) -> str:
        """What a reader of the score must know."""
        return (
            f"CIDEr over n = {self.n} pictures; its document frequencies come from the references scored, "
            f"so it compares only with scores on these very pictures"
        )

    def score(self, index: int, candidate: str) -> float:
        """CIDEr x 100 of one candidate for the picture at ``index``; the mean over pictures is the corpus score."""
        found = self.by_reference(index, candidate)
        return sum(found) / len(found)

    def by_reference(self, index: int, candidate: str) -> list[float]:
        """CIDEr x 100 of one candidate against each reference of the picture at ``index``."""
        hypothesis = self._vector(self._ngrams(candidate))
        return [1000 * _similarity(hypothesis, reference) for reference in self._references[index]]

    def shares(self, index: int, candidate: str) -> dict[Ngram, float]:
        """What each n-gram of a candidate adds to its score; they add up to it."""
        hypothesis, references = self._vector(self._ngrams(candidate)), self._references[index]
        found: dict[Ngram, float] = defaultdict(float)
        for reference in references:
            for ngram, share in _shares(hypothesis, reference):
                found[ngram] += 1000 * share / len(references)
        return dict(found)

    def _ngrams(self, caption: str) -> Counter[Ngram]:
        words = self._tokenize(caption).split()
        spans = ((start, n) for n in range(1, LONGEST + 1) for start in range(len(words) - n + 1))
        return Counter(tuple(words[start : start + n]) for start, n in spans)

    def _vector(self, counts: Counter[Ngram]) -> Vector:
        weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(LONGEST))
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (self._log_n - math.log(max(1, self._frequency[ngram])))
        norms = tuple(math.sqrt(sum(weight * weight for weight in level.values())) for level in weights)
        return Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(hypothesis: Vector, reference: Vector) -> float:
    """Clipped cosine, meaned over n = 1..4, times a Gaussian of the difference in length. 0 to 1."""
    return math.fsum(share for _, share in _shares(hypothesis, reference))


def _shares(hypothesis: Vector, reference: Vector) -> Iterator[tuple[Ngram, float]]:
    difference = hypothesis.bigrams - reference.bigrams
    gaussian = math.exp(-(difference**2) / (2 * SIGMA_WORDS**2))
    for ours, theirs, norm, reference_norm in zip(
        hypothesis.weights, reference.weights, hypothesis.norms, reference.norms, strict=True
    ):
        if norm and reference_norm:
            for ngram, weight in ours.items():
                if ngram in theirs:
                    shared = min(weight, theirs[ngram]) * theirs[ngram] / (norm * reference_norm)
                    yield ngram, shared * gaussian / LONGEST
