"""OK-VQA (Marino et al. 2019, arXiv 1906.00067): VQA accuracy against answers that were stemmed before publication.

Its annotations hold each answer twice, as given (``raw_answer``) and stemmed (``answer``); reported scores are against
the second. The stemmer's code and word lists are not among the files, but what it does is: the pairs of the two
fields. A prediction is stemmed by them, whole or word by word; where a word never occurs, its plural ``s`` or its
``ing`` goes if people's answers have what is left. So a prediction that equals a raw answer becomes that answer's stem.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from eval.metrics.metric import Gold
from eval.metrics.vqa import VqaAccuracy, accuracy, explained

ENDINGS = (("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"))


class OkVqa(VqaAccuracy):
    """VQA accuracy of the stemmed prediction against ``answer``, the other two ways beside it."""

    name = "okvqa"
    title = "VQA accuracy, % (stemmed)"

    def __init__(self, golds: Sequence[Gold]) -> None:
        super().__init__(golds)
        pairs = (
            pair for gold in golds for pair in zip(gold.versions.get("raw_answer", ()), gold.references, strict=False)
        )
        self.stemmer = Stemmer(pairs)

    def of(self, golds: Sequence[Gold]) -> OkVqa:
        """Stems as all questions taught it, so that an answer is worth the same in a sub-score."""
        part = OkVqa(golds)
        part.stemmer = self.stemmer
        return part

    def score(self, id: str, answer: str) -> float:
        """Percent."""
        return accuracy(self.stemmer(answer), self.golds[id].references)

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """Against ``answer`` without stemming the prediction, and against ``raw_answer``."""
        plain = [accuracy(answer, self.golds[id].references) for id, answer in answers.items()]
        found = {"answer, prediction as it is": sum(plain) / len(plain)}
        if all(self.golds[id].versions.get("raw_answer") for id in answers):
            raw = [accuracy(answer, self.golds[id].versions["raw_answer"]) for id, answer in answers.items()]
            found["raw_answer"] = sum(raw) / len(raw)
        return found

    def explain(self, id: str, answer: str) -> list[str]:
        """The stem, then the official processing."""
        stem = self.stemmer(answer)
        return [f"answer                 {answer!r}, stemmed:", *explained(stem, self.golds[id].references)]


class Stemmer:
    """Stems texts as pairs of raw and stemmed answers do.

    Args:
        pairs: Raw answer and stemmed answer.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        whole: dict[str, Counter[str]] = defaultdict(Counter)
        words: dict[str, Counter[str]] = defaultdict(Counter)
        for raw, stem in pairs:
            whole[raw.lower().strip()][stem] += 1
            split, stems = raw.lower().split(), stem.split()
            if len(split) == len(stems):
                for word, of in zip(split, stems, strict=True):
                    words[word][of] += 1
        self._whole = {raw: _most(found) for raw, found in whole.items()}
        self._words = {word: _most(found) for word, found in words.items()}
        self._stems = set(self._words.values())

    def __call__(self, text: str) -> str:
        """The stem."""
        plain = text.lower().strip().rstrip(".")
        if plain in self._whole:
            return self._whole[plain]
        return " ".join(self._words.get(word) or self._guess(word) for word in plain.split())

    def _guess(self, word: str) -> str:
        for ending, instead in ENDINGS:
            if word.endswith(ending) and (stem := word.removesuffix(ending) + instead) in self._stems:
                return stem
        return word


def _most(found: Counter[str]) -> str:
    return min(found, key=lambda stem: (-found[stem], stem))
