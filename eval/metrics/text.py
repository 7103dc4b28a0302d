"""Scores of short written answers: GQA's exact match, ANLS of documents, the relaxed accuracy of charts."""

from __future__ import annotations

from eval.metrics.metric import Metric

THRESHOLD = 0.5  # an answer less alike than this gets nothing
TOLERANCE = 0.05  # of a number


class ExactMatch(Metric):
    """Exact match after light normalisation: lower case, blanks, and a full stop at the end (Hudson and Manning 2019).

    GQA's own script compares texts as they are; its answers are lower case without full stops, so that this forgives a
    model its capital letter and its full stop, and nothing else.
    """

    name = "exact_match"
    title = "accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """100 or 0."""
        return 100.0 * (light(answer) in map(light, self.golds[id].references))

    def explain(self, id: str, answer: str) -> list[str]:
        """Both sides, normalised."""
        right = ", ".join(repr(light(reference)) for reference in self.golds[id].references)
        return [
            f"answer      {answer!r}",
            f"normalised  {light(answer)!r}",
            f"right       {right}",
            *super().explain(id, answer),
        ]


class Anls(Metric):
    """Average normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648, section 4).

    As the evaluator of DocVQA and InfographicVQA counts it: the edit distance is of lower-cased texts with single
    blanks, the length it is divided by is that of the texts as they were, and an answer that is exactly half alike
    still counts.
    """

    name = "anls"
    title = "ANLS × 100"

    def score(self, id: str, answer: str) -> float:
        """0, or 50 to 100."""
        alike = max(similarity(answer, reference) for reference in self.golds[id].references)
        return 100 * alike if alike >= THRESHOLD else 0.0

    def explain(self, id: str, answer: str) -> list[str]:
        """How alike each reference is."""
        lines = [f"{reference!r}: {similarity(answer, reference):.3f} alike" for reference in self.golds[id].references]
        return [f"answer {answer!r}", *lines, f"less than {THRESHOLD} counts 0", *super().explain(id, answer)]


class RelaxedAccuracy(Metric):
    """Accuracy of ChartQA (Masry et al. 2022, section 5): a number may be 5 % off, a text only in case."""

    name = "relaxed_accuracy"
    title = "relaxed accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """100 or 0."""
        return 100.0 * any(relaxed(answer, reference) for reference in self.golds[id].references)

    def explain(self, id: str, answer: str) -> list[str]:
        """As what both sides are read."""
        lines = []
        for said in (answer, *self.golds[id].references):
            number = number_of(said)
            lines.append(f"{said!r} is {'a text' if number is None else f'the number {number:g}'}")
        return [*lines, f"numbers may be {TOLERANCE:.0%} off", *super().explain(id, answer)]


def light(text: str) -> str:
    """Lower case, single blanks, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def similarity(answer: str, reference: str) -> float:
    """1 minus the edit distance per letter of the longer text."""
    length = max(len(answer), len(reference))
    return (
        1 - distance(" ".join(answer.lower().split()), " ".join(reference.lower().split())) / length if length else 1.0
    )


def relaxed(answer: str, reference: str) -> bool:
    """Whether an answer counts as a reference; a reference of 0 is compared as text, as the evaluator does."""
    answer, reference = answer.strip(), reference.strip()
    said, right = number_of(answer), number_of(reference)
    if said is not None and right:
        return abs(said - right) / abs(right) <= TOLERANCE
    return answer.lower() == reference.lower()


def number_of(text: str) -> float | None:
    """A number, of a percentage its hundredth; None of a text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def distance(first: str, second: str) -> int:
    """The edit distance of Levenshtein, reckoned a row at a time."""
    above = list(range(len(second) + 1))
    for at, letter in enumerate(first, start=1):
        row = [at]
        for place, other in enumerate(second, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != other)))
        above = row
    return above[-1]
