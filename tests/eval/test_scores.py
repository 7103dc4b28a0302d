"""Baselines and intervals against numbers that can be worked out, and stored answers scored again."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from eval.again import rescore
from eval.baselines import constant, question_only
from eval.metrics.cider import Cider
from eval.metrics.interval import interval
from eval.scores import by_shots, table
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
    at = by_shots([*said(0, "sighted", [score + 1 for score in scores]), *said(0, "blind", scores)])["0"]
    assert at["gain_interval"] == pytest.approx([1, 1])
    assert at["interval"][1] - at["interval"][0] > 10


def test_the_interval_is_scipys() -> None:
    """The same draws from the same generator: pictures of several questions are a ratio of two paired sums."""
    generator = np.random.default_rng(3)
    pictures = np.append(np.arange(40), generator.integers(40, size=110))
    scores = generator.normal(50, 10, 150)
    sums, sizes = np.bincount(pictures, scores, 40), np.bincount(pictures, minlength=40)
    found = scipy.stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        random_state=np.random.default_rng(7),
    ).confidence_interval
    named = [f"{picture:02d}" for picture in pictures]
    assert interval(list(scores), named, seed=7) == pytest.approx((found.low, found.high), abs=1e-9)


def test_many_pictures_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = list(np.random.default_rng(4).normal(50, 10, 100))
    whole = interval(scores)
    monkeypatch.setattr("eval.metrics.interval.DRAWN_AT_ONCE", 12_345)
    assert interval(scores) == pytest.approx(whole, abs=0.1)


def said(shots: int, arm: str, scores: list[float]) -> list[dict]:
    return [
        {"task": "t", "shots": shots, "arm": arm, "id": f"{at}", "image": f"{at // 2}", "references": ["x"], "score": x}
        for at, x in enumerate(scores)
    ]


def test_what_sight_and_demonstrations_add_is_paired_and_by_picture() -> None:
    """Two pictures with two questions each: of four equally likely draws one has the first twice, one the second."""
    zero = said(0, "sighted", [100, 100, 0, 100]) + said(0, "blind", [0, 100, 0, 100])
    found = by_shots(zero + said(4, "sighted", [100, 100, 100, 0]) + said(4, "blank", [0, 0, 0, 0]))
    assert (found["0"]["gain"], found["0"]["gain_interval"]) == (25, [0, 50])
    assert (found["0"]["over_zero_shot"], found["0"]["over_zero_shot_interval"]) == (None, None)
    assert (found["4"]["gain"], found["4"]["gain_interval"]) == (None, None)
    assert (found["4"]["over_zero_shot"], found["4"]["over_zero_shot_interval"]) == (0, [0, 0])
    assert (found["4"]["blank"], found["4"]["blank_interval"], found["4"]["interval"]) == (0, [0, 0], [50, 100])


def test_a_difference_is_over_what_both_arms_answered() -> None:
    found = by_shots(said(0, "sighted", [100, 0, 0, 0]) + said(0, "blind", [0, 0]))
    assert (found["0"]["sighted"], found["0"]["gain"]) == (25, 50)


def test_the_table_shows_what_was_asked() -> None:
    task = {"metric": "vqa_accuracy", "n": 4, "warnings": ["tiny"], "question_only": 17.25, "constant": None}
    shots = by_shots(said(0, "sighted", [100, 100, 0, 100]) + said(0, "blind", [0, 100, 0, 100]))
    shared = {"pictures": 0, "trained": 7, "scored": 2, "found": []}
    head, line, warning, leak = table({"tasks": {"vqa/t": {**task, "shots": shots}}, "overlap": shared}).splitlines()
    assert head.split() == ["task", "n", "shots", "sighted", "blind", "gain", "question"]
    cells = ["vqa/t", "4", "0", "75.0 (50.0 to 100.0)", "50.0 (50.0 to 50.0)", "25.0 (0.0 to 50.0)", "17.2"]
    assert re.split(r"  +", line) == cells
    assert (warning, leak) == ("vqa/t: tiny", "overlap: 0 of 7 pictures trained on are among 2 scored")


def test_scores_of_format_1_are_still_shown() -> None:
    at = {"sighted": 30.0, "blind": 10.0, "interval": [25.0, 35.0], "blind_interval": None}
    old = {"tasks": {"icl": {"metric": "vqa_accuracy", "n": 4, "warnings": [], "shots": {"0": at}}}}
    assert re.split(r"  +", table(old).splitlines()[1]) == ["icl", "4", "0", "30.0 (25.0 to 35.0)", "10.0"]


def test_stored_answers_are_scored_from_their_references() -> None:
    same = {"task": "t", "shots": 0, "question": "q?", "references": ["red"] * 10, "score": -1}
    said = [("sighted", "1", "red"), ("sighted", "2", "blue"), ("blind", "1", "x"), ("blind", "2", "x")]
    answers = [{**same, "arm": arm, "id": id, "image": id, "answer": answer} for arm, id, answer in said]
    found = rescore(answers)["t"]
    assert (found["metric"], found["n"]) == ("vqa_accuracy", 2)
    assert (found["shots"]["0"]["sighted"], found["shots"]["0"]["blind"]) == (50, 0)
    assert [answer["score"] for answer in answers] == [100, 0, 0, 0]


def test_an_interval_over_seeds_draws_seeds_too() -> None:
    """Two seeds 20 apart, every picture alike: of four equally likely draws one has the lower seed twice."""
    scores, seeds = [40.0] * 5 + [60.0] * 5, [0] * 5 + [1] * 5
    pictures = list(range(5)) * 2
    assert interval(scores, pictures, draws=seeds) == (40, 60)
    assert interval(scores, pictures, draws=seeds, level=0.4) == (50, 50), "half of the draws have both seeds"
    assert interval(scores, pictures) == (50, 50), "a seed that is not told is no uncertainty"


def test_pictures_and_seeds_are_crossed() -> None:
    """Against a resample written as loops, of an effect of pictures, one of seeds, and both together."""
    chance = np.random.default_rng(5)
    table_SC = chance.normal(0, 5, (3, 1)) + chance.normal(0, 10, (1, 30)) + chance.normal(0, 3, (3, 30))
    means = []
    for _ in range(4000):
        rows, columns = chance.integers(3, size=3), chance.integers(30, size=30)
        means.append(np.mean([[table_SC[row, column] for column in columns] for row in rows]))
    seeds, pictures = np.repeat(np.arange(3), 30), np.tile(np.arange(30), 3)
    found = interval(list(table_SC.ravel()), list(pictures), draws=list(seeds))
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.3)


def test_an_unfinished_seed_may_be_drawn_with_nothing() -> None:
    low, high = interval([0.0, 100.0, 50.0], ["a", "b", "a"], draws=[0, 0, 1])
    assert 0 <= low < high <= 100


def test_means_of_seeds_and_differences_from_what_was_asked_once() -> None:
    zero = said(0, "sighted", [0, 100])
    four = [{**answer, "seed": seed} for seed in (1, 2) for answer in said(4, "sighted", [100, 100 * (seed - 1)])]
    at = by_shots(zero + four)
    assert at["4"]["seeds"] == {"1": 50, "2": 100}
    assert at["4"]["deviation"] == pytest.approx(50 / np.sqrt(2))
    assert (at["4"]["sighted"], at["4"]["over_zero_shot"]) == (75, 25)
    assert (at["0"]["seeds"], at["0"]["deviation"], at["0"]["dropped"]) == ({"0": 50}, None, None)
    assert "2, sd 35.4" in table({"tasks": {"t": {"n": 2, "warnings": [], "shots": at}}})
