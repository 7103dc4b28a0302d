"""Two runs on the same questions, against cases that can be worked out by hand."""

from __future__ import annotations

import pytest

from eval.compare import compare, told
from mm1.errors import UserError


def said(
    scores: dict[str, float], arm: str = "sighted", shots: int = 0, task: str = "vqa/t", question: str = "q?"
) -> list:
    same = {"task": task, "shots": shots, "arm": arm, "question": question, "references": ["x"], "answer": "x"}
    return [{**same, "id": id, "image": id[0], "score": score} for id, score in scores.items()]


FIRST = said({"a1": 100, "a2": 100, "b1": 0, "b2": 100})


def test_the_difference_is_paired_and_drawn_by_picture() -> None:
    """Picture a says +50, picture b 0: of four equally likely draws one is +50 and one 0."""
    [row] = compare(FIRST, said({"a1": 0, "a2": 100, "b1": 100, "b2": 0}))
    assert (row.n, row.ours, row.theirs, row.difference, row.interval) == (4, 75, 50, 25, (0, 50))
    assert told([row]).splitlines()[1].split() == ["vqa/t", "4", "0", "75.0", "50.0", "+25.0", "+0.0", "to", "+50.0"]


def test_seeds_are_paired_and_one_stands_beside_all() -> None:
    second = [{**answer, "seed": seed} for seed in (1, 2) for answer in said({"a1": 50 * seed, "b1": 0})]
    [row] = compare(second, said({"a1": 50, "b1": 0}))
    assert (row.n, row.ours, row.difference) == (2, 37.5, 12.5)
    [row] = compare(second, [{**answer, "score": answer["score"] - 10} for answer in second])
    assert (row.n, row.difference, row.interval) == (2, 10, (10, 10))
    with pytest.raises(UserError, match=r"the seeds are \[1, 2\] and \[3, 4\]; expected some in common"):
        compare(second, [{**answer, "seed": answer["seed"] + 2} for answer in second])


def test_dropped_demonstrations_are_marked_on_either_side() -> None:
    lost = [{**answer, "dropped": ["d"] * (answer["id"] == "a1")} for answer in FIRST]
    for pair in ((FIRST, lost), (lost, FIRST)):
        lines = told(compare(*pair)).splitlines()
        assert lines[1].split()[2] == "0†"
        assert lines[2] == "† some answers had fewer demonstrations: their prompts exceeded the context"
    assert "†" not in told(compare(FIRST, FIRST))


def test_arms_are_chosen_on_both_sides_and_only_shots_of_both_are_shown() -> None:
    second = said({"a1": 0, "a2": 0, "b1": 0, "b2": 0}, "blank") + said({"a1": 50}, "sighted", shots=8)
    [row] = compare(FIRST + said({"a1": 0}, shots=4), second, other_arm="blank")
    assert (row.shots, row.difference) == (0, 75)


def test_questions_that_only_one_answered_are_left_out() -> None:
    [row] = compare(FIRST, said({"b2": 0, "c1": 100}))
    assert (row.n, row.difference) == (1, 100)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (said({"a1": 0}, "blind"), "share no task and shots"),
        (said({"c1": 0}), "the first answered 4 questions, the second 1, 0 of them in common"),
        ([{**FIRST[0], "references": ["y"]}], "question a1 has other references"),
    ],
)
def test_what_cannot_be_compared_is_told(second: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(FIRST, second)


def test_only_what_both_have_scores_of_is_compared() -> None:
    second = said({"a1": 50, "a2": 50, "b1": 0})
    second[1]["score"] = None
    for pair in ((FIRST, second), (second, FIRST)):
        [row] = compare(*pair)
        assert row.n == 2
    with pytest.raises(UserError, match=r"share no task and shots with scores; .* judged where those want a judge"):
        compare(FIRST, [{**answer, "score": None} for answer in FIRST])


def test_another_metric_is_no_comparison() -> None:
    with pytest.raises(UserError, match="vqa/t has metric usual in the first and anls in the second"):
        compare(FIRST, [{**answer, "metric": "anls"} for answer in FIRST])


def test_captions_over_other_pictures_are_not_compared() -> None:
    captions = said({"a": 30, "b": 10}, task="captions/t", question="")
    assert compare(captions, captions)[0].difference == 0
    with pytest.raises(UserError, match=r"captions/t at 0 shots: the first answered 2 .* 1 of them in common"):
        compare(captions, captions[:1])


def test_a_score_that_is_no_mean_is_compared_as_what_it_is() -> None:
    """F1 of yes: two true of two and one false are 4/5, one true of two 2/3; accuracies would be 2/3 both."""
    about = {"task": "pope", "shots": 0, "arm": "sighted", "question": "q?", "metric": "pope_f1"}
    right = ("yes", "yes", "no")
    ours, theirs = (
        [
            {
                **about,
                "id": str(at),
                "image": str(at),
                "references": [right[at]],
                "answer": said,
                "score": 100.0 * (said == right[at]),
            }
            for at, said in enumerate(answers)
        ]
        for answers in (("yes", "yes", "yes"), ("yes", "no", "no"))
    )
    [found] = compare(ours, theirs)
    assert (found.ours, found.theirs) == (pytest.approx(80), pytest.approx(200 / 3))
    assert found.difference == pytest.approx(80 - 200 / 3)


def test_answers_that_nobody_scored_are_not_compared() -> None:
    answers = [
        {
            "task": "t",
            "shots": 0,
            "arm": "sighted",
            "id": "1",
            "image": "1",
            "answer": "x",
            "score": None,
            "references": [],
        }
    ]
    with pytest.raises(UserError, match="share no task and shots"):
        compare(answers, answers)
