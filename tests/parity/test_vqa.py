"""VQA accuracy beside what the official evaluator returned for the same predictions, and examples worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.metrics.metric import Gold
from eval.metrics.vqa import VqaAccuracy, accuracy, normalize, soft_accuracy

GOLDEN = [json.loads(line) for line in Path(__file__).with_name("vqa_official.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['prediction']!r:.20}")
def test_scores_are_those_of_the_official_evaluator(row: dict) -> None:
    assert soft_accuracy(row["prediction"], row["answers"]) == pytest.approx(row["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("matches", "percent"),
    [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)],  # 3: 7 ways leave 3/3, 3 ways leave 2/3
)
def test_soft_accuracy_leaves_out_one_person_by_index(matches: int, percent: float) -> None:
    answers = ["red"] * matches + [f"other {at}" for at in range(10 - matches)]
    assert soft_accuracy("red", answers) == pytest.approx(percent)


def test_answers_are_normalised_only_when_people_differ() -> None:
    assert soft_accuracy("Yes", ["yes"] * 10) == 0
    assert soft_accuracy("Yes", ["yes"] * 9 + ["no"]) == 100
    metric = VqaAccuracy([Gold("1", ("yes",) * 10), Gold("2", ("red",) * 10)])
    assert metric.also({"1": "Yes", "2": "red"}) == {"always normalised": 100}
    assert metric.also({"1": "yes", "2": "red"}) == {}


def test_full_stops_stay_after_the_thirty_second() -> None:
    assert normalize("." * 33 + "x") == ".x"


def test_a_full_stop_goes_even_after_a_digit_but_not_before_one() -> None:
    assert normalize("3.5 or 4.") == "3.5 or 4"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two dogs, dont run.", "2 dogs don't run"),
        ("blue/green", "blue green"),
        ("1,000 red-white", "1000 redwhite"),  # a comma between digits removes every mark
        ("none", "0"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


def test_a_single_answer_asks_for_an_exact_match_of_normalised_texts() -> None:
    assert accuracy("Washing machine.", ["washing_machine"]) == 100
    assert accuracy("machine", ["washing machine"]) == 0
