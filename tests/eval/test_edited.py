"""What a person may have done to a run's files since, and what a run that was stopped leaves: never a silent score."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import store
from eval.__main__ import main
from eval.harness import run
from eval.prompts import Settings
from eval.store import Answers
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from tests.eval.conftest import write_rows
from tests.eval.test_store import answer, begun

SETTINGS = Settings(shots=(0,), arms=("sighted",), tasks=("captions/mini", "vqa/daquar"))
Door = Callable[..., tuple[int, str]]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Door:
    """Exit code and the last line."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err.strip().splitlines()[-1]
        return 0, capsys.readouterr().out

    return call


@pytest.fixture
def out(model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path) -> Path:
    run(model, tokenizer, checkpoint, data, SETTINGS, tmp_path / "out")
    return tmp_path / "out"


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("command", ["score", "compare", "explain"])
def test_metrics_that_trade_places_are_found_out(door: Door, out: Path, command: str) -> None:
    """Each task's answers agree among themselves: what the run noted says that they were others."""
    swapped = {"captions/mini": "vqa_accuracy", "vqa/daquar": "anls"}
    write_rows(out / "answers.jsonl", [{**row, "metric": swapped[row["task"]]} for row in rows(out)])
    more = {"score": [], "compare": [out], "explain": ["3"]}[command]
    code, told = door(command, out / "answers.jsonl", *more)
    assert code == 2
    assert "has metric 'vqa_accuracy'; expected 'usual', with which it was made" in told


def test_scores_that_were_edited_count_for_nothing(
    door: Door, model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, out: Path
) -> None:
    """Or were made by an earlier version of a metric."""
    before = json.loads((out / "scores.json").read_text())["tasks"]
    told = door("compare", out, out)[1]
    write_rows(out / "answers.jsonl", [{**row, "score": 77.0} for row in rows(out)])
    assert door("compare", out, out)[1] == told
    assert run(model, tokenizer, checkpoint, data, SETTINGS, out)["tasks"] == before


def test_one_metric_that_was_edited_is_found_out_without_a_note(door: Door, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [answer("1"), {**answer("2"), "metric": "exact_match"}])
    assert (
        "answer to question 2 of vqa/x has metric 'exact_match'; expected 'usual'"
        in door("score", tmp_path / "a.jsonl")[1]
    )


def test_a_metric_that_wants_what_answers_lack_is_told(door: Door, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{**answer("1"), "metric": "mathvista"}])
    code, told = door("score", tmp_path / "a.jsonl")
    assert (code, "question 1 of vqa/x lacks what mathvista needs ('question_type')" in told) == (2, True)
    write_rows(tmp_path / "a.jsonl", [{**answer("1"), "metric": "mme"}])
    assert "answers of vqa/x lack what mme needs" in door("score", tmp_path / "a.jsonl")[1]


def test_a_damaged_line_is_no_answer_left_out_in_silence(door: Door, out: Path) -> None:
    lines = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
    code, told = door("score", out / "answers.jsonl")
    assert (code, "line 3 is no answer, 1 of 11 are none" in told) == (2, True)
    (out / "answers.jsonl").write_text("".join([*lines, lines[0][:40]]))
    assert door("score", out / "answers.jsonl")[0] == 0, "a kill cuts the last line short"


def test_a_score_of_a_run_that_was_stopped_says_so(door: Door, out: Path) -> None:
    write_rows(out / "answers.jsonl", [row for row in rows(out) if row["task"] != "vqa/daquar" or row["id"] in "01"])
    told = door("score", out / "answers.jsonl")[1]
    assert "vqa/daquar: 2 of 5 answers are there, the run is not finished" in told
    assert "captions/mini: 6 of 6" not in told


def test_scores_of_other_settings_do_not_stay_beside_new_answers(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((out / "scores.json").read_text())

    def stopped(self: Answers, answers: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, checkpoint, data, Settings(shots=(1,), tasks=SETTINGS.tasks), out)
    assert not (out / "scores.json").exists(), "it would be taken for the score of what is asked now"
    assert len(list(out.glob("scores-*.json"))) == 1
    assert run(model, tokenizer, checkpoint, data, SETTINGS, out)["tasks"] == before["tasks"], "nothing was left to ask"
    assert not list(out.glob("scores-*.json"))


def test_a_refused_run_leaves_what_was_noted_of_training(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, out: Path
) -> None:
    (out / "overlap.json").write_text('{"vqa/daquar": {"pictures": ["1"], "questions": []}}')
    with pytest.raises(UserError, match="expected at most 20"):
        run(model, tokenizer, checkpoint, data, Settings(shots=(0,), max_positions=20), out)
    assert "vqa/daquar" in (out / "overlap.json").read_text()


def test_a_kill_between_two_files_overwrites_no_answer_set_aside(tmp_path: Path, monkeypatch) -> None:
    begun(tmp_path, "first").add([answer("1")])
    begun(tmp_path, "other").add([answer("2")])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("write_json", "write_answers"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, killed)
            with pytest.raises(KeyboardInterrupt):
                begun(tmp_path, "first")
        assert [found["id"] for found in Answers(tmp_path, "first").found.values()] == ["1"]
    begun(tmp_path, "first")
    assert [found["id"] for found in begun(tmp_path, "other").found.values()] == ["2"]


def test_what_a_reader_must_know_of_the_files_outlives_scoring_again(door: Door, data: Path, out: Path) -> None:
    scores = json.loads((out / "scores.json").read_text())
    lost = "1 of 6 questions left out, their pictures are missing"
    before = scores["tasks"]["captions/mini"]["warnings"]
    scores["tasks"]["captions/mini"]["warnings"] = [lost, "3 of 6 answers are empty", *before]
    (out / "scores.json").write_text(json.dumps(scores))
    told = door("score", out / "answers.jsonl")[1]
    assert f"captions/mini: {lost}" in told
    assert json.loads((out / "scores.json").read_text())["tasks"]["captions/mini"]["warnings"] == [lost, *before]


def test_the_judge_stays_named_where_a_judged_run_is_run_again(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, out: Path
) -> None:
    scores = json.loads((out / "scores.json").read_text())
    (out / "scores.json").write_text(json.dumps({**scores, "judge": {"name": "umpire"}}))
    assert run(model, tokenizer, checkpoint, data, SETTINGS, out)["judge"] == {"name": "umpire"}
    (out / "scores.json").write_text("{")
    assert "judge" not in run(model, tokenizer, checkpoint, data, SETTINGS, out), "what is damaged is written anew"


def test_files_that_ask_something_else_under_the_same_ids_are_refused(door: Door, data: Path, out: Path) -> None:
    path = data / "vqa/daquar/test.jsonl"
    path.write_text(path.read_text().replace("what is thing 3", "where is thing 3"))
    code, told = door("score", out / "answers.jsonl", "--data", data)
    assert code == 2
    assert "answers 'what is thing 3 ?' under the id 3 of vqa/daquar, where --data has 'where is thing 3 ?'" in told
    path.write_text(path.read_text().replace("where is thing 3", "what is thing 3"))
    assert door("score", out / "answers.jsonl", "--data", data)[0] == 0
    path = data / "captions_eval/mini.json"
    about = json.loads(path.read_text())
    about["images"][0]["path"], about["images"][1]["path"] = "images/1.png", "images/0.png"
    path.write_text(json.dumps(about))
    told = door("score", out / "answers.jsonl", "--data", data)[1]
    assert "answers '0.png' under the id 0 of captions/mini, where --data has '1.png'" in told


def test_answers_set_aside_do_not_become_the_scores_of_others(
    door: Door, model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, out: Path
) -> None:
    run(model, tokenizer, checkpoint, data, Settings(shots=(1,), tasks=SETTINGS.tasks), out)
    scores = (out / "scores.json").read_text()
    [aside], [theirs] = out.glob("answers-*.jsonl"), out.glob("scores-*.json")
    before = json.loads(theirs.read_text())
    (out / "mine.jsonl").write_text(aside.read_text())
    for path in (aside, out / "mine.jsonl"):
        assert door("score", path)[0] == 0
        assert (out / "scores.json").read_text() == scores
    assert json.loads(theirs.read_text()) == before
    assert list(before["tasks"]["vqa/daquar"]["shots"]) == ["0"]


def test_a_note_of_what_was_trained_on_that_is_none_is_told(door: Door, out: Path) -> None:
    (out / "overlap.json").write_text('{"vqa/daquar": ["1"]}')
    code, told = door("score", out / "answers.jsonl")
    assert (code, "overlap.json has no pictures and questions by task" in told) == (2, True)


def test_a_device_without_numbers_is_refused(door: Door, checkpoint: Path, data: Path) -> None:
    for words in (["run", checkpoint, "--data", data], ["ask", checkpoint, "What?"]):
        code, told = door(*words, "--device", "meta")
        assert (code, "device 'meta' cannot be used (it holds shapes and no numbers); try cpu" in told) == (2, True)
