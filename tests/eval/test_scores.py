"""Baselines and intervals against numbers that can be worked out, and stored answers scored again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eval.baselines import constant, question_only
from eval.metrics.cider import Cider
from eval.metrics.interval import interval, paired_interval
from eval.scores import rescore
from eval.task import Query, Task, discover

SHARED = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))


def query(id: str, picture: str, question: str, answer: str) -> Query:
    return Query(id, Path(picture), question, (answer,), answer)


TRAIN = (
    query("a", "a", "what colour is the cat?", "black"),
    query("b", "b", "what colour is the dog?", "brown"),
    query("c", "c", "what colour is the sky?", "black"),
    query("d", "d", "how many cats?", "2"),
    query("e", "e", "is it?", "2"),
    query("f", "f", "is it there?", "2"),
)
QUERIES = (
    query("1", "1", "What colour is the dog", "brown"),  # this very question
    query("2", "2", "what colour is the sea?", "black"),  # the same first four words
    query("3", "3", "how tall?", "2"),  # the same first word
    query("4", "4", "who?", "nobody"),  # the most common answer, 2, is wrong
)


def test_question_only_backs_off_from_the_question_to_its_first_words() -> None:
    assert question_only(Task("t", "vqa", QUERIES, TRAIN)) == 75


def test_the_constant_is_the_most_common_answer() -> None:
    assert constant(Task("t", "vqa", QUERIES, TRAIN)) == 25


def test_without_a_train_part_a_picture_does_not_vote_on_its_own_questions() -> None:
    queries = (query("1", "p", "who?", "ann"), query("2", "p", "who?", "ann"), query("3", "q", "who?", "bob"))
    task = Task("t", "vqa", queries)
    assert question_only(task) == 0, "p hears bob and q hears ann"
    assert constant(task) == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small real corpus is not there")
def test_baselines_of_daquar_are_near_the_published_ones() -> None:
    """Its README: best constant 6.5 %, a lookup on the question 18.5 %."""
    daquar = next(task for task in discover(SHARED) if task.name == "vqa/daquar")
    assert constant(daquar) == pytest.approx(6.5, abs=0.05)
    assert question_only(daquar) == pytest.approx(18.5, abs=1)


def test_a_typical_caption_beats_no_caption(data: Path) -> None:
    pool = tuple(
        Query(f"{at}", Path(f"{at}"), "", (text,), text) for at, text in enumerate(["a red picture"] * 3 + ["x"])
    )
    captions = next(task for task in discover(data) if task.kind == "captions")
    assert constant(Task("t", "captions", captions.queries, pool)) == pytest.approx(
        np.mean([Cider([q.references for q in captions.queries]).score(at, "a red picture") for at in range(6)])
    )
    assert constant(Task("t", "captions", captions.queries)) is None


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    scores = np.random.default_rng(0).normal(50, 10, 400)
    low, high = interval(list(scores))
    half = 1.96 * scores.std() / 20
    assert (low, high) == (pytest.approx(scores.mean() - half, abs=0.15), pytest.approx(scores.mean() + half, abs=0.15))


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Ten copies of every score say no more than one."""
    scores = list(np.random.default_rng(1).normal(0, 1, 50))
    low, high = interval(scores)
    many = interval([score for score in scores for _ in range(10)], [at for at in range(50) for _ in range(10)])
    assert many == pytest.approx((low, high), abs=0.05)
    naive = interval([score for score in scores for _ in range(10)])
    assert naive[1] - naive[0] < (high - low) / 2


def test_a_paired_interval_knows_that_the_questions_are_the_same() -> None:
    scores = list(np.random.default_rng(2).normal(0, 100, 60))
    assert paired_interval([score + 1 for score in scores], scores) == pytest.approx((1, 1))


def test_stored_answers_are_scored_from_their_references() -> None:
    same = {"task": "t", "shots": 0, "question": "q?", "references": ["red"] * 10, "score": -1}
    said = [("sighted", "1", "red"), ("sighted", "2", "blue"), ("blind", "1", "x"), ("blind", "2", "x")]
    answers = [{**same, "arm": arm, "id": id, "image": id, "answer": answer} for arm, id, answer in said]
    found = rescore(answers)["t"]
    assert (found["metric"], found["n"]) == ("vqa_accuracy", 2)
    assert (found["shots"]["0"]["sighted"], found["shots"]["0"]["blind"]) == (50, 0)
    assert [answer["score"] for answer in answers] == [100, 0, 0, 0]
