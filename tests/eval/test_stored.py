"""Explaining a score, and results files written and graded, at the door and with a sentence for every fault."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.__main__ import main
from tests.eval import releases, sft_releases


@pytest.fixture
def mm1_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
        main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for of in (releases.vqav2, releases.nocaps, releases.gqa, releases.textvqa):
        of(tmp_path / "data")
    return tmp_path / "data"


def answer(task: str, id: str, said: str, **more: object) -> dict:
    about = {"task": task, "shots": 0, "arm": "sighted", "id": id, "image": "p.jpg", "shown": "p.jpg", "question": ""}
    return {**about, "prompt": "<image>", "answer": said, "references": ["red"] * 10, "score": 0.0, **more}


def stored(folder: Path, answers: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    return folder


def test_the_benchmarks_of_a_folder_are_named_without_reading_them(mm1_eval, release: Path) -> None:
    (release / "gqa/questions/testdev_balanced_questions.json").write_text("damaged")
    told = mm1_eval("tasks", "--data", release).split()
    assert {"gqa/testdev", "nocaps/val", "vqav2/test-dev", "textvqa/val-ocr"} <= set(told)


VQA = {"question": "What colour?", "references": ["red"] * 3 + ["Dark  red."] * 7}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("references", None),
        ("shots", "x"),
        ("answer", None),
        ("answer", 3),
        ("id", [1]),
        ("image", None),
        ("score", "x"),
        ("score", float("nan")),
        ("references", [3]),
        ("seed", None),
        ("prompt", []),
        ("demonstrations", 3),
        ("dropped", [None]),
        ("groups", 1.5),
        ("versions", []),
        ("versions", {"raw_answer": 1}),
        ("about", "x"),
    ],
)
def test_an_answer_that_was_edited_badly_is_named(mm1_eval, tmp_path: Path, capsys, field: str, value: object) -> None:
    folder = stored(tmp_path / "out", [answer("t", "1", "red"), {**answer("t", "2", "red"), field: value}])
    with pytest.raises(SystemExit, match="2"):
        mm1_eval("score", folder / "answers.jsonl")
    told = capsys.readouterr().err
    assert f"answer 2 has {field} = {value!r}; expected an answers.jsonl written by mm1-eval run" in told


def test_every_step_of_a_vqa_score_is_shown(mm1_eval, tmp_path: Path) -> None:
    asked = answer("vqav2/val", "7", "The red.", **VQA, prompt="<image>Question: What colour? Short answer:", seed=3)
    told = mm1_eval("explain", stored(tmp_path / "out", [{**asked, "demonstrations": ["1", "2"]}]), "7")
    for line in (
        "vqav2/val, question 7, 0 shots, sighted, seed 3",
        "demonstrations  1, 2",
        "    <image>Question: What colour? Short answer:",
        "answer          'The red.'",
        "    numbers, articles      'red'",
        "    without person  1: 2 matches, min(2/3, 1) = 0.667",
        "    without person  4: 3 matches, min(3/3, 1) = 1.000",
        "    mean                   90.0",
    ):
        assert line in told.splitlines(), told


def test_the_ngrams_of_a_caption_are_shown(mm1_eval, tmp_path: Path) -> None:
    captions = [
        answer("coco/val2014", str(at), f"a {word} dog", references=[f"A {word} dog.", "something else"])
        for at, word in enumerate(("red", "green", "small"))
    ]
    told = mm1_eval("explain", stored(tmp_path / "out", captions), "1")
    assert "    tokens     a green dog" in told
    assert "picture shown" not in told
    assert "green dog" in told.split("n-grams")[1]


def test_what_cannot_be_explained_is_told(mm1_eval, tmp_path: Path, capsys) -> None:
    out = stored(tmp_path / "out", [answer("a", "1", "x", **VQA), answer("b", "1", "x", **VQA), answer("b", "2", "x")])
    for words, told in (
        (["1"], "question 1 stands in a and b; expected --task to name one"),
        (["9"], "there is no sighted answer to question 9; expected an id such as 1, 2"),
        (["2", "--shots", "4"], "to question 2 at 4 shots"),
    ):
        with pytest.raises(SystemExit):
            mm1_eval("explain", out, *words)
        assert told in capsys.readouterr().err
    assert "b, question 1" in mm1_eval("explain", out, "1", "--task", "b")


def test_a_submission_has_every_question_of_the_test_part(mm1_eval, release: Path, tmp_path: Path) -> None:
    said = [answer("vqav2/test-dev", f"{1000 * at}", f"red {at}", references=[], metric="none") for at in (300, 301)]
    out, file = stored(tmp_path / "out", said), tmp_path / "results.json"
    told = mm1_eval("submission", out, "--data", release, "--task", "vqav2/test-dev", "--out", file)
    assert "4 answers, 2 of them empty" in told
    assert json.loads(file.read_text()) == [
        {"question_id": 300000, "answer": "red 300"},
        {"question_id": 301000, "answer": "red 301"},
        {"question_id": 302000, "answer": ""},
        {"question_id": 303000, "answer": ""},
    ]


@pytest.mark.parametrize(
    ("task", "first"),
    [
        ("nocaps/val", {"image_id": 0, "caption": "x"}),
        ("gqa/testdev", {"questionId": "20000710", "prediction": "x"}),
        ("textvqa/val", {"question_id": 510, "answer": "x"}),
    ],
)
def test_results_have_the_names_of_their_server(
    mm1_eval, release: Path, tmp_path: Path, task: str, first: dict
) -> None:
    ids = {"nocaps/val": range(6), "gqa/testdev": range(20000710, 20000716), "textvqa/val": range(510, 516)}[task]
    out, file = stored(tmp_path / "out", [answer(task, str(id), "x") for id in ids]), tmp_path / "results.json"
    mm1_eval("submission", out, "--data", release, "--task", task, "--out", file)
    assert json.loads(file.read_text())[0] == first


def test_results_of_anyone_are_graded(mm1_eval, release: Path, tmp_path: Path) -> None:
    """Six people said the colour, four dark: the colour is right, dark too, nothing else; pictures are not needed."""
    (release / "vqav2/val2014/COCO_val2014_000000000200.jpg").unlink()
    said = [releases.WORDS[200 % 6], "dark", "", "nothing", "dark", "dark"]
    rows = [{"question_id": 1000 * (200 + at), "answer": word} for at, word in enumerate(said)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    told = mm1_eval("grade", tmp_path / "results.json", "--data", release, "--task", "vqav2/val")
    assert told.splitlines()[1].split()[:4] == ["vqav2/val", "6", "0", "66.7"]
    assert "vqav2/val: 1 of 6 answers are empty" in told


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        ("vqav2/val", {"results": []}, "holds a dict; expected a list of results"),
        ("vqav2/val", [{"question_id": 200000}], "entry 1 has question_id; expected also answer"),
        ("vqav2/val", [{"question_id": 9, "answer": "x"}], "answers question_id 9, which vqav2/val does not ask"),
        ("vqav2/val", [{"question_id": 200000, "answer": "x"}] * 2, "answers question_id 200000 twice"),
        ("vqav2/val", [{"question_id": 200000, "answer": "x"}], "answers 1 of 6 questions of vqav2/val; expected all"),
        ("vqav2/test", [{"question_id": 300000, "answer": "x"}], "the answers of vqav2/test are not published"),
        ("vqav2/other", [], "tasks names vqav2/other"),
        ("pope/coco", [{"question_id": 1, "answer": "yes"}], "pope/coco has several questions with question_id 1"),
    ],
)
def test_results_that_are_wrong_are_told(
    mm1_eval, release: Path, tmp_path: Path, capsys, task: str, rows: object, told: str
) -> None:
    sft_releases.pope(release)
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit):
        mm1_eval("grade", tmp_path / "results.json", "--data", release, "--task", task)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "more", "told"),
    [
        ([], [], "there are no sighted answers of textvqa/val at any shots"),
        ([("510", 0), ("510", 4)], [], "textvqa/val was asked with 0, 4 shots; expected --shots to name one"),
        ([("510", 0)], ["--out", "ANSWERS"], "answers.jsonl is what is read here; expected another file to write"),
        ([("510", 0)], ["--shots", "0"], "5 of 6 questions of textvqa/val have no answer, the first is 511"),
    ],
)
def test_submissions_that_lack_something_are_told(
    mm1_eval, release: Path, tmp_path: Path, capsys, answers: list, more: list, told: str
) -> None:
    said = [answer("textvqa/val", id, "x", shots=shots) for id, shots in answers] or [answer("other", "1", "x")]
    more = [tmp_path / "out/answers.jsonl" if word == "ANSWERS" else word for word in more]
    words = ["--data", release, "--task", "textvqa/val", "--out", tmp_path / "results.json", *more]
    with pytest.raises(SystemExit):
        mm1_eval("submission", stored(tmp_path / "out", said), *words)
    assert told in capsys.readouterr().err
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == len(said)
