"""Scorers on values worked out by hand from their definitions, and on answers as models write them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from eval.metrics.choice import Choice, letter_of
from eval.metrics.metric import Gold, Metric, metric_class
from eval.metrics.okvqa import OkVqa, Stemmer
from eval.metrics.overlap import bleu, bleu_counts, caption_scores, common, rouge_l
from eval.metrics.text import light, number_of, relaxed, similarity
from eval.metrics.yes_no import mme_answer, pope_answer


def number(metric: Metric, answers: dict[str, str]) -> float:
    """What a task's number is made of these answers."""
    scores = {id: metric.score(id, answer) for id, answer in answers.items()}
    counts = metric.counts(answers, scores)
    return float(metric.value(np.array(list(counts.values()), dtype=float).sum(axis=0)))


def made(name: str, references: dict[str, Sequence[str]]) -> Metric:
    return metric_class(name)([Gold(id, tuple(given)) for id, given in references.items()])


@pytest.mark.parametrize(
    ("answer", "reference", "alike"),
    [
        ("kitten", "sitting", 1 - 3 / 7),  # Levenshtein's own example: 3 edits, 7 letters
        ("Red  Car ", "red car", 1.0),  # compared in lower case with single blanks
        ("", "red", 0.0),
        ("", "", 1.0),
        ("ab", "abcd", 0.5),
    ],
)
def test_similarity_is_one_minus_edits_per_letter(answer: str, reference: str, alike: float) -> None:
    assert similarity(answer, reference) == pytest.approx(alike)


def test_anls_takes_the_nearest_reference_and_forgets_what_is_less_than_half_alike() -> None:
    anls = made("anls", {"1": ["sitting", "mitten"], "2": ["abcd"], "3": ["abcde"]})
    assert anls.score("1", "kitten") == pytest.approx(100 * (1 - 1 / 6))
    assert anls.score("2", "ab") == 50, "exactly half counts, as in the evaluator"
    assert anls.score("3", "ab") == 0
    assert number(anls, {"1": "mitten", "2": "ab", "3": "ab"}) == pytest.approx(50)
    assert "0.833 alike" in "\n".join(anls.explain("1", "kitten"))


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("95", "100", True),  # 5 % off
        ("94.9", "100", False),
        ("104%", "1.0", True),  # 1.04
        ("12%", "12", False),  # 0.12
        ("-5", "-5.2", True),
        ("0.001", "0", False),  # a reference of 0 is a text
        ("0", "0", True),
        ("Red", "red", True),
        ("red", "red car", False),
        ("1,000", "1000", False),  # no number to the evaluator
    ],
)
def test_relaxed_accuracy(answer: str, reference: str, right: bool) -> None:
    assert relaxed(answer, reference) == right
    assert made("relaxed_accuracy", {"1": [reference]}).score("1", answer) == 100 * right


def test_numbers_of_charts() -> None:
    assert [number_of(text) for text in ("5", "50%", "five")] == [5, 0.5, None]


def test_exact_match_forgives_case_blanks_and_a_full_stop() -> None:
    exact = made("exact_match", {"1": ["man"]})
    assert [exact.score("1", answer) for answer in (" Man. ", "men", "a man")] == [100, 0, 0]
    assert light("  Two\n Men.") == "two men"


CHOICES = ("a cat", "a dog", "A bird", "none of these")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        (" B.", "B"),
        ("**C**", "C"),
        ("B. a dog", "B"),
        ("B: a dog", "B"),
        ("(D) none", "D"),
        ("B, because it barks", "B"),
        ("Answer: A", "A"),
        ("answer is (C).", "C"),
        ("The answer is B", "B"),
        ("The correct option is D.", "D"),
        ("A dog", "B"),  # an article, and the text of B
        ("It is a bird.", "C"),
        ("a cat or a dog", None),
        ("I cannot tell", None),
        ("E", None),
        ("", None),
        ("Both fit, but (B) fits better", "B"),
        ("(A) or (B)", "A"),
    ],
)
def test_the_letter_that_an_answer_names(answer: str, letter: str | None) -> None:
    assert letter_of(answer, CHOICES) == letter


def test_choices_are_right_by_text_or_by_letter() -> None:
    metric = Choice(
        [Gold("1", ("red",), choices=("blue", "red")), Gold("2", (), choices=("x", "x"), about={"letter": "B"})]
    )
    assert [metric.score("1", answer) for answer in ("B", "red", "A", "what")] == [100, 100, 0, 0]
    assert [metric.score("2", answer) for answer in ("B", "A")] == [100, 0]
    assert metric.chosen("1", "red") == "B. red"
    assert metric.also({"1": "B", "2": "what"}) == {"named no choice, %": 50}
    assert "read as B" in metric.explain("1", "(B)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, there is.", "yes"),
        ("No", "no"),
        ("There is not. Yes", "no"),
        ("no way", "no"),
        ("Nothing", "yes"),
        ("", "yes"),
    ],
)
def test_popes_reading(text: str, said: str) -> None:
    assert pope_answer(text) == said


def test_pope_counts_by_hand() -> None:
    """3 true yes, 1 false yes, 2 false no, 4 true no: precision 3/4, recall 3/5, F1 6/9, accuracy 7/10, yes 4/10."""
    right = ["yes"] * 3 + ["no"] + ["yes"] * 2 + ["no"] * 4
    said = ["Yes."] * 4 + ["No."] * 6
    pope = made("pope_f1", {str(at): [answer] for at, answer in enumerate(right)})
    answers = {str(at): answer for at, answer in enumerate(said)}
    assert number(pope, answers) == pytest.approx(100 * 6 / 9)
    assert pope.also(answers) == pytest.approx({"accuracy": 70, "precision": 75, "recall": 60, "yes, %": 40})
    assert [pope.score("0", "yes"), pope.score("0", "no")] == [100, 0]


def test_mmes_points_by_hand() -> None:
    """Existence: 3 of 4 right and 1 of 2 pictures whole, 75 + 50; code: 1 of 2 and none, 50 + 0."""
    pairs = (("existence", "p"), ("existence", "q"), ("code_reasoning", "p"))
    asked = [(task, picture, right) for task, picture in pairs for right in ("Yes", "No")]
    golds = [Gold(str(at), (right,), picture=pic, groups=(task,)) for at, (task, pic, right) in enumerate(asked)]
    mme = metric_class("mme")(golds)
    answers = dict(zip("012345", ["Yes", "no.", "yes", "Yes", "Yes", "maybe"], strict=True))
    assert number(mme, answers) == 175
    assert mme.also(answers) == {"perception": 125, "cognition": 50}
    assert mme.warnings == []
    assert metric_class("mme")(golds[:3]).warnings == ["1 of 2 pictures have not two questions each, as MME's have"]
    assert [mme_answer(text) for text in ("Yes", " no", "I say yes", "not")] == ["yes", "no", "other", "no"]


def test_okvqa_stems_as_its_own_pairs_do() -> None:
    stemmer = Stemmer(
        [("ponies", "pony"), ("riding horses", "ride horse"), ("Teddy bears", "teddy bear"), ("surf", "surf")]
    )
    told = {"Ponies.": "pony", "riding": "ride", "horses": "horse", "bears riding": "bear ride", "cats": "cats"}
    assert {text: stemmer(text) for text in told} == told
    assert stemmer("surfs") == "surf", "by its ending, since people's answers have what is left"
    gold = Gold("1", ("pony",) * 10, versions={"raw_answer": ("ponies",) * 10})
    metric = OkVqa([gold])
    assert metric.score("1", "ponies") == 100
    assert metric.also({"1": "ponies"}) == {"answer, prediction as it is": 0, "raw_answer": 100}
    assert "'pony'" in metric.explain("1", "ponies")[1]


def test_okvqa_stems_an_answer_alike_in_every_sub_score() -> None:
    """Question 2 alone would not know what dogs are stemmed to."""
    first = Gold("1", ("dog",) * 10, "q", groups=("a",), versions={"raw_answer": ("dogz",) * 10})
    second = Gold("2", ("dog",) * 5 + ("cat",) * 5, "q", groups=("b",), versions={"raw_answer": ("dog", "cat") * 5})
    whole = metric_class("okvqa")([first, second])
    assert whole.score("2", "dogz") > 99
    assert whole.of([second]).score("2", "dogz") == whole.score("2", "dogz")


def test_bleu_by_hand() -> None:
    """``the cat sat`` beside ``the cat sat down``: all n-grams match, exp(1 - 4/3) for being short; no 4-gram."""
    counts = bleu_counts("the cat sat", ["the cat sat down", "a very long other sentence here"])
    assert counts == (3, 4, 3, 2, 1, 0, 3, 2, 1, 0)
    found = bleu(np.array(counts, dtype=float))
    assert found[:3] == pytest.approx([np.exp(-1 / 3)] * 3, abs=1e-6)
    assert bleu_counts("a a a", ["a b", "a a"])[2] == 2, "clipped by the most of any one reference"


def test_rouge_by_hand() -> None:
    """``a b c`` beside ``a x c d``: the longest common subsequence is a c; P 2/3, R 2/4, beta 1.2."""
    p, r = 2 / 3, 2 / 4
    assert rouge_l("a b c", ["a x c d"]) == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))
    assert rouge_l("", ["a"]) == 0
    assert common(["a", "b", "c", "b", "d", "a", "b"], ["b", "d", "c", "a", "b", "a"]) == 4  # CLRS, section 15.4
    scores = caption_scores({"1": "a b c d"}, {"1": ["a b c d"]})
    assert scores == pytest.approx({"BLEU-1": 100, "BLEU-2": 100, "BLEU-3": 100, "BLEU-4": 100, "ROUGE-L": 100})
