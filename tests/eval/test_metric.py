"""A metric is found by its name or import path, and a number that is no mean has an interval as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.again import rescore
from eval.harness import chosen_tasks, evaluate
from eval.metrics.cider import CiderScore
from eval.metrics.interval import interval, interval_of
from eval.metrics.metric import Metric, metric_class
from eval.prompts import Settings
from eval.scores import by_shots, table
from eval.store import Answers
from eval.task import Query, Task
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1


class Share(Metric):
    """Right answers over answers given at all: a ratio of sums."""

    name = "share"
    title = "share of what was answered, %"

    def score(self, id: str, answer: str) -> float:
        return 100.0 * (answer in self.golds[id].references)

    def counts(self, answers, scores):
        return {id: (scores[id], float(bool(answers[id]))) for id in answers}

    def also(self, answers):
        return {"answered": float(sum(map(bool, answers.values())))}


def said(answers: list[str], groups: list[str], metric: str) -> list[dict]:
    about = {"task": "t", "shots": 0, "arm": "sighted", "question": "q?", "references": ["x"], "metric": metric}
    return [
        {
            **about,
            "id": str(at),
            "image": str(at),
            "answer": answer,
            "score": 100.0 * (answer == "x"),
            "groups": [group],
        }
        for at, (answer, group) in enumerate(zip(answers, groups, strict=True))
    ]


def test_metrics_are_found_by_name_and_by_path() -> None:
    assert metric_class("cider") is metric_class("eval.metrics.cider.CiderScore") is CiderScore
    for name in ("nothing", "eval.metrics.cider.Cider", "eval.nowhere.Metric"):
        with pytest.raises(UserError, match=f"metric {name} is none; expected one of .*vqa_accuracy"):
            metric_class(name)


def test_a_number_that_is_no_mean_its_groups_and_what_it_says_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four answers one is empty and two are right: 2 of 3; in group a 1 of 1, in b 1 of 2."""
    monkeypatch.setattr("eval.again.metric_class", lambda name: Share)
    answers = said(["x", "", "x", "y"], ["a", "a", "b", "b"], "share")
    found = rescore(answers)["t"]
    at = found["shots"]["0"]
    assert at["sighted"] == pytest.approx(200 / 3)
    assert (at["groups"]["a"]["sighted"], at["groups"]["b"]["sighted"]) == (100, 50)
    assert at["groups"]["a"]["n"] == 2
    assert at["also"] == {"sighted": {"answered": 3}}
    assert 0 <= at["interval"][0] < 200 / 3 < at["interval"][1] <= 100
    assert found["warnings"] == ["1 of 4 answers are empty"]


def test_a_sub_score_made_with_fewer_demonstrations_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of group b alone one answer lost a demonstration; what stands beside the number of all is marked, too."""
    monkeypatch.setattr("eval.again.metric_class", lambda name: Share)
    answers = said(["x", "x", "x", "y"], ["a", "a", "b", "b"], "share")
    answers[3]["dropped"] = ["7"]
    told = table({"tasks": rescore(answers)}).splitlines()
    assert [line.split()[:3] for line in told[1:4]] == [["t", "4", "0†"], ["a", "2", "0"], ["b", "2", "0†"]]
    assert told[4].startswith("t at 0† shots, sighted: answered")


def test_the_interval_of_a_function_of_sums_is_that_of_the_mean_for_a_mean() -> None:
    scores = list(np.random.default_rng(0).normal(size=40))
    counts_QK = np.stack([scores, np.ones(40)], axis=1)
    assert interval_of(lambda s: s[..., 0] / s[..., 1], counts_QK, range(40)) == interval(scores)


def test_answers_that_nobody_can_score_have_no_number() -> None:
    task = Task("t", "vqa", (Query("1", Path("p"), "q?", (), ""),), metric="none")
    answers = [{**one, "score": None} for one in said(["x"], ["a"], "none")]
    at = by_shots(answers, task.scorer())["0"]
    assert (at["sighted"], at["interval"]) == (None, None)


def test_choices_by_letter_stand_in_the_question() -> None:
    query = Query("1", Path("p"), "Which?", ("red",), "red", choices=("blue", "red"))
    task = Task("t", "choices", (query,), choosing="letter")
    asked = task.asked(query)
    assert (asked.question, asked.answer, asked.choices) == ("Which?\nA. blue\nB. red", "B", ())
    assert Task("t", "choices", (query,)).asked(query) is query
    twice = Query("2", Path("p"), "Which?", ("red",), "red", choices=("red", "red"), about={"letter": "A"})
    assert task.asked(twice).answer == "A", "of two that read alike the one that is right"


@pytest.mark.parametrize("choosing", ["likelihood", "letter"])
def test_choices_are_taken_by_likelihood_or_read_from_an_answer(
    choosing: str, data: Path, model: MM1, tokenizer: Tokenizer
) -> None:
    pictures = [data / f"captions_eval/images/{at}.png" for at in range(3)]
    queries = [
        Query(str(at), picture, "Which?", ("red",), "red", choices=("blue", "red"))
        for at, picture in enumerate(pictures)
    ]
    task = Task("t", "choices", tuple(queries), metric="choice", choosing=choosing)
    answers = Answers(None, "")
    evaluate(model, tokenizer, [task], Settings(shots=(0, 1), arms=("sighted",)), answers)
    for answer in answers.found.values():
        assert answer["prompt"].endswith("Answer:")
        assert ("A. blue\nB. red" in answer["prompt"]) == (choosing == "letter")
        if choosing == "likelihood":
            assert answer["answer"] in ("A. blue", "B. red")
            assert answer["score"] == 100 * (answer["answer"] == "B. red")
        if answer["shots"]:
            shown = {"likelihood": "Answer: red", "letter": "Answer: B"}[choosing]
            assert shown in answer["prompt"]


def test_words_that_a_prompt_defines_are_never_chosen_by_letter(data: Path) -> None:
    [task] = chosen_tasks(data, Settings(tasks=("icl",), choosing="letter"))
    assert task.choosing == "likelihood"
