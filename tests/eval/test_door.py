"""The door mm1-eval, as a person meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eval.__main__ import main
from tests.eval.conftest import write_rows

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "eval" / "fewshot.yaml"


ANSWER = {"shots": 0, "arm": "sighted", "image": "x", "answer": "wall clock", "references": ["wall clock"]}
FAULTY = {
    "twice": [("vqa/daquar", "3"), ("vqa/daquar", "3")],
    "unknown": [("vqa/daquar", "3"), ("vqa/daquar", "9")],
    "other": [("vqa/daquar", "3"), ("vqa/other", "3")],
}


@pytest.fixture
def mm1_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
        main()
        return capsys.readouterr().out

    return call


def test_run_writes_into_the_run_folder_and_score_finds_the_same(mm1_eval, checkpoint: Path, data: Path) -> None:
    told = mm1_eval("run", checkpoint, "--data", data, "--config", CONFIG, "--shots", "[0,1]", "--limit", 2)
    out = checkpoint.parent.parent / "eval" / "fewshot"
    assert told.rstrip().endswith(str(out / "scores.json"))
    assert "captions/mini" in told
    scores = json.loads((out / "scores.json").read_text())
    assert scores["settings"]["limit"] == 2
    (out / "scores.json").write_text(
        json.dumps({**scores, "tasks": {n: {**t, "shots": {}} for n, t in scores["tasks"].items()}})
    )
    mm1_eval("score", out / "answers.jsonl")
    again = json.loads((out / "scores.json").read_text())
    assert {name: task["shots"] for name, task in again["tasks"].items()} == {
        name: task["shots"] for name, task in scores["tasks"].items()
    }
    assert again["tasks"]["vqa/daquar"]["constant"] == scores["tasks"]["vqa/daquar"]["constant"]


def test_answers_are_scored_again_with_the_references_of_other_files(mm1_eval, checkpoint: Path, data: Path) -> None:
    mm1_eval("run", checkpoint, "--data", data, "--out", data / "out", "--shots", "[0]", "--tasks", "[vqa/daquar]")
    [said] = [json.loads(line) for line in (data / "out/answers.jsonl").read_text().splitlines()][:1]
    rows = [json.loads(line) for line in (data / "vqa/daquar/test.jsonl").read_text().splitlines()]
    write_rows(data / "vqa/daquar/test.jsonl", [{**row, "answer": "lamp"} for row in rows])
    path = data / "out/answers.jsonl"
    write_rows(path, [{**said, "answer": "lamp"}])
    assert json.loads(path.read_text())["references"] == ["wall clock"]
    mm1_eval("score", path)
    assert json.loads(path.read_text())["score"] == 0
    mm1_eval("score", path, "--data", data)
    found = json.loads(path.read_text())
    assert (found["references"], found["score"]) == (["lamp"], 100)


def test_compare_takes_files_or_folders(mm1_eval, checkpoint: Path, data: Path) -> None:
    settings = ["--shots", "[0]", "--arms", "[sighted,blank]", "--tasks", "[vqa/daquar]"]
    mm1_eval("run", checkpoint, "--data", data, "--out", data / "out", *settings)
    told = mm1_eval("compare", data / "out", data / "out/answers.jsonl", "--other-arm", "blank")
    assert told.splitlines()[0].split() == ["task", "n", "shots", "first", "second", "difference", "95", "%"]
    assert told.splitlines()[1].split()[:3] == ["vqa/daquar", "5", "0"]


def test_ask_answers_about_pictures(mm1_eval, checkpoint: Path, data: Path) -> None:
    picture = data / "captions_eval/images/0.png"
    assert isinstance(mm1_eval("ask", checkpoint, picture, picture, "What is this?", "--max_new_tokens", 3), str)
    assert isinstance(mm1_eval("ask", checkpoint, "No picture at all?", "--max_new_tokens", 3), str)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "CKPT", "nowhere.jpg", "What?"], "nowhere.jpg is not readable"),
        (["ask", "CKPT", "DATA/captions_eval/images/0.png"], "expected the question there"),
        (["ask", "nowhere.ckpt", "What?"], "nowhere.ckpt does not exist"),
        (["run", "CKPT", "--data", "nowhere"], "nowhere is no folder"),
        (["run", "CKPT", "--data", "DATA", "--shots", "[9]"], "9 shots for question"),
        (["run", "CKPT", "--data", "DATA", "--shots", "[0]", "--max-positions", "20"], "expected at most 20"),
        (["run", "CKPT", "--data", "DATA", "--style", "chat"], "style chat expects no {answer}"),
        (["ask", "CKPT", "word " * 5000], "expected at most 4096"),
        (["ask", "CKPT", "What is \udcff?"], "is no Unicode text"),
        (["ask", "CKPT", "What?", "--max_new_tokens", "0"], "max_new_tokens is 0; expected at least 1"),
        (["ask", "CKPT", "What?", "--max_new_token", "many"], "max_new_tokens: Expected an int. Got value: many"),
        (["run", "CKPT", "--data", "DATA", "--shots", "two"], "shots: Expected a tuple. Got value: two"),
        (
            ["run", "CKPT", "--data", "DATA", "--config", "DATA/null.yaml"],
            "vqa is None; expected template, stop and max",
        ),
        (["run", "CKPT", "--data", "DATA", "--config", "DATA/retrieval.yaml"], "retrieval is None; expected model and"),
        (
            ["run", "CKPT", "--data", "DATA", "--config", "DATA/decoding.yaml"],
            "vqa.decoding is None; expected beams, or",
        ),
        (["rnu", "CKPT"], "invalid choice: 'rnu'"),
        (["score", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["run", "CKPT", "--data", "DATA", "--dtype", "half"], "dtype: "),
        (["run", "CKPT", "--data", "DATA", "--corpus", "DATA"], "manifest.json does not exist; expected a corpus"),
        (["run", "CKPT", "--data", "DATA", "--arms", "[deaf]"], "arms: "),
        (["compare", "DATA", "nowhere.jsonl"], "answers.jsonl is no file"),
        (["contamination", "nowhere", "--data", "DATA"], "expected a corpus written by mm1-data shards"),
        (["score", "DATA"], "is no file; expected an answers.jsonl"),
        (
            ["score", "DATA/twice.jsonl"],
            "has 2 sighted answers to question 3 of vqa/daquar at 0 shots with seed 0; expe",
        ),
        (
            ["score", "DATA/unknown.jsonl", "--data", "DATA"],
            "answers 1 questions that vqa/daquar does not have, such as 9",
        ),
        (["score", "DATA/other.jsonl", "--data", "DATA"], "answers vqa/other; expected some of vqa/daquar"),
        (["score", "DATA/vqa/daquar/test.jsonl"], "does not hold one answer a line"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    words: list[str], message: str, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name, text in (("null", "vqa: null"), ("retrieval", "retrieval: null"), ("decoding", "vqa: {decoding: null}")):
        (data / f"{name}.yaml").write_text(text)
    for name, asked in FAULTY.items():
        write_rows(data / f"{name}.jsonl", [{**ANSWER, "task": task, "id": id} for task, id in asked])
    words = [word.replace("CKPT", str(checkpoint)).replace("DATA", str(data)) for word in words]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert message in told
