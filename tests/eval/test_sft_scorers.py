"""Scorers of instruction-tuning benchmarks, with values worked out by hand from their scripts' rules."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.benchmarks import MMBench, MMBenchCircular, Pope, ScienceQA
from eval.metrics.judged import JUDGEMENTS, LlavaBench, MathVista, MmVet, mark, two_scores
from eval.metrics.metric import Gold, Metric, metric_class
from eval.metrics.mmmu import Mmmu, is_right, letter_of, readings


def value(metric: Metric, answers: dict[str, str]) -> float:
    scores = {id: score for id, answer in answers.items() if (score := metric.score(id, answer)) is not None}
    counts = metric.counts({id: answers[id] for id in scores}, scores)
    return float(metric.value(np.array(list(counts.values()), dtype=float).sum(axis=0)))


def choice(id: str = "1", letter: str = "B", choices: tuple[str, ...] = ("red", "green", "blue"), **about) -> Gold:
    return Gold(id, (choices["ABCDE".index(letter)],), "Which?", id, choices, about={"letter": letter, **about})


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("B", "B"),
        ("B. green", "B"),
        ("The answer is B.", "B"),
        ("b", None),  # the script knows capital letters alone
        ("(B)", None),
        ("green", None),  # nor the choice in words
        ("B green", None),
        ("The answer is B. No, The answer is C.", None),  # said twice
        ("E", "E"),  # a letter without a choice is read, and wrong
    ],
)
def test_scienceqa_reads_as_llavas_script(answer: str, read: str | None) -> None:
    assert ScienceQA([choice()]).read("1", answer) == read
    assert ScienceQA([choice()]).score("1", answer) == (100.0 if read == "B" else 0.0)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("B", "B"),
        ("(B) green", "B"),
        ("B. green", "B"),
        ("A big dog that is green", "B"),  # an article in more than three words; the text of one choice
        ("A dog", "A"),  # three words at most: the letter
        ("the green one", "B"),
        ("red or green", None),  # two choices
        ("A or B", None),  # two letters
        ("D", "D"),
        ("nothing", None),
    ],
)
def test_mmbench_reads_as_its_script_without_a_language_model(answer: str, read: str | None) -> None:
    assert MMBench([choice()]).read("1", answer) == read


def test_the_likeliest_choice_is_read_as_itself_whatever_its_words() -> None:
    gold = choice(letter="B", choices=("a cat", "A dog", "I"))
    for name in ("mmbench", "scienceqa", "choice"):
        metric = metric_class(name)([gold])
        assert [metric.read("1", metric.chosen("1", one)) for one in gold.choices] == ["A", "B", "C"], name


def test_circular_evaluation_counts_a_question_once_and_only_whole() -> None:
    """Question 1 is right in both turns, 2 in one of two, 3 was asked in one turn only, and right."""
    golds = [
        choice("1", "A", ("x", "y"), turns_of="1"),
        choice("1/1", "B", ("y", "x"), turns_of="1"),
        choice("2", "A", ("x", "y"), turns_of="2"),
        choice("2/1", "B", ("y", "x"), turns_of="2"),
        choice("3", "A", ("x", "y"), turns_of="3"),
    ]
    metric = MMBenchCircular(golds)
    answers = {"1": "A", "1/1": "B", "2": "A", "2/1": "A", "3": "A"}
    assert value(metric, answers) == pytest.approx(100 * 2 / 3)
    assert metric.warnings == ["1 of 3 questions lack turns (limit): the score is too high"]
    assert metric.also(answers)["accuracy, each turn by itself"] == pytest.approx(80)
    assert value(MMBench(golds), answers) == pytest.approx(80)


def test_pope_is_the_mean_of_three_f1() -> None:
    """random: 1 hit, 1 false yes, 0 false no, F1 2/3; popular: all right, 1; adversarial: never yes, 0."""
    labels = {"random": "yes no", "popular": "yes no", "adversarial": "yes no"}
    golds = [
        Gold(f"{way}/{at}", (label,), groups=(way,)) for way in labels for at, label in enumerate(labels[way].split())
    ]
    said = {"random": ("Yes", "yes"), "popular": ("Yes, it is.", "No"), "adversarial": ("no", "There is not.")}
    answers = {f"{way}/{at}": answer for way, of in said.items() for at, answer in enumerate(of)}
    metric = metric_class("pope")(golds)
    assert isinstance(metric, Pope)
    assert value(metric, answers) == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    pooled = 200 * 2 / (2 * 2 + 1 + 1)
    assert value(metric_class("pope_f1")(golds), answers) == pytest.approx(pooled)
    alone = Pope(golds[:2])
    assert value(alone, {id: answers[id] for id in ("random/0", "random/1")}) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("A or (B)", "B"),  # in parentheses goes before alone
        ("A, no: B", "B"),  # the last
        ("Between A and C I take C because", "C"),
        ("it is B.", "B"),
        ("I think that it is the green one here", "B"),  # text in more than five words
        ("the green one", None),  # not in fewer
        ("red or green, or the other one of the two", "B"),  # the last of the texts
        ("", None),
    ],
)
def test_mmmu_reads_choices_as_its_script(answer: str, read: str | None) -> None:
    assert letter_of(answer, ("red", "green", "blue")) == read
    metric = Mmmu([choice()])
    if read is None:
        assert metric.letter("1", answer) in "ABC"
        assert metric.letter("1", answer) == Mmmu([choice("0"), choice()]).letter("1", answer), "drawn by the id alone"
        assert metric.also({"1": answer}) == {"letter drawn, %": 100.0}
    else:
        assert metric.score("1", answer) == (100.0 if read == "B" else 0.0)


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("3.5", ("3.5", "three and a half"), True),
        ("3.504", ("3.5",), True),  # to two places
        ("x + y = 3.5", ("3.5",), True),  # the last line may be an equation
        ("The result is 1,000.", ("1000",), True),
        ("The answer is forty", ("fort",), True),  # a reference inside the answer counts
        ("It is 4 and not 5", ("4",), True),  # any number of the sentence's end
        ("Perhaps 4\nIt is 5", ("4",), False),  # a line without an indicator says nothing where another has one
        ("a", ("a",), True),
        ("cat", ("a",), False),  # a single letter wants a blank beside it
        ("it is a b", ("a",), True),
    ],
)
def test_mmmu_reads_open_answers_as_its_script(answer: str, references: tuple[str, ...], right: bool) -> None:
    assert is_right(answer, references) == right


def test_mmmu_reads_every_number_where_no_line_says_what_the_answer_is() -> None:
    assert readings("4\n5,000") == {"4\n5,000", 4.0, 5000.0, 0.0}, "of 5,000 the script also finds the 000"


def mathvista(answer_type: str = "integer", **about) -> MathVista:
    given = {"question_type": "free_form", "answer_type": answer_type, "precision": 0, "choices": [], **about}
    return MathVista([Gold("1", (given.pop("right"),), "How many?", about=given)])


@pytest.mark.parametrize(
    ("metric", "answer", "read"),
    [
        (mathvista(right="14"), "14", "14"),
        (mathvista(right="14"), "The missing number is 14.", "14"),
        (mathvista(right="14"), "14.0 apples", "14"),
        (mathvista(right="14"), "3 + 11, so the answer is 14 in all 2 rows", "14"),
        (mathvista(right="14"), "none", None),
        (mathvista("float", precision=2, right="1.45"), "It costs $1.451", "1.45"),
        (mathvista("float", precision=1, right="0.6"), "0.55", "0.6"),  # as Python rounds
        (mathvista("float", precision=2, right="1.4"), "1.40", "1.4"),
        (mathvista("list", right="[2007, 2008]"), "Between [2007, 2008].", "[2007, 2008]"),
    ],
)
def test_mathvista_reads_the_type_asked_for(metric: MathVista, answer: str, read: str | None) -> None:
    assert metric.read("1", answer) == read
    assert metric.score("1", answer) == (100.0 if read == metric.golds["1"].references[0] else 0.0)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("8/11", "8/11"),
        ("B", "8/11"),
        ("The answer is (B) 8/11.", "8/11"),
        ("(a)", "3/11"),
        ("8/12", "8/11"),  # the choice most alike, whatever was said
        ("blue", "3/11"),  # all are four letters away: the first
    ],
)
def test_mathvista_takes_the_choice_most_alike(answer: str, read: str) -> None:
    about = {
        "question_type": "multi_choice",
        "answer_type": "text",
        "precision": 0,
        "choices": ["3/11", "8/11", "6/11"],
    }
    assert MathVista([Gold("1", ("8/11",), about=about)]).read("1", answer) == read


def test_mathvista_takes_a_judges_extraction_where_the_answer_is_not_plain() -> None:
    metric = mathvista(right="14")
    assert metric.asks("1", "14") is None
    assert metric.asks("1", "") is None
    said = "One of seven or twice that, fourteen"
    assert metric.score("1", said) == 0
    assert metric.asks("1", said)["answer"] == said  # type: ignore[index]
    metric.remember("1", {JUDGEMENTS: {mark(said): {"text": "14", "judge": "x"}}})
    assert metric.score("1", said) == 100
    assert metric.score("1", "15") == 0, "of another answer nobody said anything"


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 9\nBoth are 10 of 10.", (8, 9)),
        ("8.5, 9", (8.5, 9)),
        ("Assistant 1: 8, Assistant 2: 9", None),  # 1 is nobody's score
        ("8/10 9/10", None),
        ("80 90", None),
        ("8", None),
        ("-1 9", None),
    ],
)
def test_two_numbers_and_no_third_are_two_scores(text: str, scores: tuple[float, float] | None) -> None:
    assert two_scores(text) == scores


def test_llava_bench_is_a_ratio_of_sums() -> None:
    """8 to 6 and 10 to 3 make 9 of 18; an answer that was not judged counts in neither."""
    golds = [Gold(id, ("reference",), "Q?", about={"context": "c"}) for id in "abc"]
    metric = LlavaBench(golds)
    answers = {"a": "ours", "b": "our own", "c": "unjudged"}
    assert metric.score("a", "ours") is None
    metric.remember("a", {JUDGEMENTS: {mark("ours"): {"text": "8 6\nBecause .."}}})
    metric.remember("b", {JUDGEMENTS: {mark("our own"): {"text": "10, 3"}}})
    assert metric.score("a", "ours") == 60
    assert value(metric, answers) == pytest.approx(100 * 9 / 18)
    assert metric.also(answers) == {"judged": 2.0}
    assert not metric.readable("No score at all.\n7 8")
    assert LlavaBench(list(metric.golds.values())[:1]).score("a", "ours") == 60, "sub-scores know what was judged"


def test_mm_vet_is_the_mean_correctness() -> None:
    metric = MmVet([Gold("a", ("-1<AND>-5",), "x?"), Gold("b", ("red",), "?")])
    metric.remember("a", {JUDGEMENTS: {mark("x = -1"): {"text": "0.5"}}})
    metric.remember("b", {JUDGEMENTS: {mark("red"): {"text": "1.0 since it is red"}}})
    assert value(metric, {"a": "x = -1", "b": "red"}) == 75
    assert metric.asks("a", "x =\n-1") == {
        "question": "x?",
        "reference": "-1 <AND> -5",
        "answer": "x = -1",
        "context": "",
    }
    assert [metric.readable(text) for text in ("0.3", "1", "1.5", "good", "")] == [True, True, False, False, False]
