"""The context's arithmetic: 17 pictures of 144 tokens fit 4096 positions, 33 do not, and nothing is dropped unsaid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.fit import Length, excess, measure, refuse
from eval.harness import run
from eval.prompts import Settings
from eval.scores import table
from mm1.data.encode import prompt
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text, Views, expand
from tests.eval.conftest import picture, write_rows


def lengths(shots: int, tokens_per_image: int) -> list[Length]:
    """Prompts of ``shots`` demonstrations of 20 tokens of text, then without the first, without the first two, .."""
    return [Length(left + 1, tokens_per_image, 11 + 20 * left, 10) for left in range(shots, -1, -1)]


@pytest.mark.parametrize(("shots", "tokens_per_image"), [(16, 144), (32, 64), (24, 144)])
def test_what_fits_mm1s_context(shots: int, tokens_per_image: int) -> None:
    """24: 25 x 144 + 11 + 24 x 20 + 10 = 4101 positions; five too many."""
    assert excess(lengths(shots, tokens_per_image), 4096) == (1 if shots == 24 else 0)


def test_thirty_two_shots_of_144_tokens_are_refused_with_the_arithmetic() -> None:
    found = str(refuse("vqa/t, question 7, 32 shots", lengths(32, 144), 4096))
    assert found == (
        "vqa/t, question 7, 32 shots: a prompt of 5403 positions (33 pictures x 144 = 4752, text 651) and 10 new "
        "tokens make 5413; expected at most 4096 (max_positions): 23 of 32 demonstrations fit (when_too_long: drop), "
        "or all with a connector of at most 104 tokens"
    )


def test_no_advice_where_none_would_help() -> None:
    assert str(refuse("t", lengths(0, 144), 100)).endswith("make 165; expected at most 100 (max_positions)")
    assert str(refuse("t", lengths(2, 144), 100)).endswith("(max_positions), and the question alone takes 165")


def test_a_length_is_that_of_what_is_decoded(tokenizer: Tokenizer) -> None:
    items = [Image(b""), Text("a green picture"), Image(b""), Text("what is this?", end=True)]
    length = measure(items, 4, tokenizer, 5)
    assert length.total == len(prompt(items, tokenizer, 5).tokens) + 4
    assert length.pictures == 2


def test_views_are_what_is_encoded(tokenizer: Tokenizer) -> None:
    """1344 px: four fields and the whole; earlier demonstrations in one view."""
    views = Views(rows=2, columns=2, separator="view {number}")
    items = [Image(b"", views="whole"), Text("a green picture"), Image(b""), Text("what is this?")]
    length = measure(items, 4, tokenizer, 144, views)
    assert (length.pictures, length.encoded) == (2, 6)
    assert length.total == len(prompt(expand(items, views), tokenizer, 144).tokens) + 4
    assert "2 pictures in 6 views x 144 = 864" in str(length)
    full = measure(
        [replace(item, views="full") if isinstance(item, Image) else item for item in items], 4, tokenizer, 144, views
    )
    assert full.encoded == 10


@pytest.fixture
def settings() -> Settings:
    return Settings(shots=(0, 3), tasks=("vqa/daquar",), max_positions=150, when_too_long="drop", separator="\n")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def positions(prompt: str, demonstrations: int, tokenizer: Tokenizer) -> int:
    """What the last demonstrations and the question of a prompt take, with an answer of 10 tokens."""
    texts = prompt.split("<image>")[-demonstrations - 1 :]
    return measure([item for text in texts for item in (Image(b""), Text(text))], 10, tokenizer, 16).total


def test_dropped_demonstrations_are_the_earliest_and_every_answer_names_them(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, settings: Settings
) -> None:
    whole = replace(settings, max_positions=4096)
    run(model, tokenizer, checkpoint, data, whole, tmp_path / "whole")
    wanted = {(a["arm"], a["id"], a["shots"]): a for a in lines(tmp_path / "whole")}
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    lost = 0
    for answer in lines(tmp_path / "out"):
        before = wanted[answer["arm"], answer["id"], answer["shots"]]
        assert before["dropped"] == []
        assert answer["dropped"] + answer["demonstrations"] == before["demonstrations"]
        assert before["prompt"].endswith(answer["prompt"])
        assert answer["prompt"].count("<image>") == len(answer["demonstrations"]) + 1
        lost += len(answer["dropped"])
        fits = len(answer["demonstrations"])
        assert positions(before["prompt"], fits, tokenizer) <= 150
        if answer["shots"] == 3:
            assert positions(before["prompt"], fits + 1, tokenizer) > 150, "one more would have fit"
    at = scores["tasks"]["vqa/daquar"]["shots"]
    assert at["0"]["dropped"] is None
    assert at["3"]["dropped"] == {"answers": 10, "demonstrations": lost}
    told = table(scores)
    assert "3†" in told
    assert "† vqa/daquar at 3 shots: 10 answers had fewer" in told
    assert f"{lost} demonstrations were dropped, the earliest first" in told


def test_a_prompt_that_is_refused_says_how_many_would_fit(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, settings: Settings
) -> None:
    refusing = replace(settings, when_too_long="refuse")
    with pytest.raises(UserError, match=r"vqa/daquar, question \d, 3 shots: a prompt of \d+ positions \(4 pictures x"):
        run(model, tokenizer, checkpoint, data, refusing, tmp_path / "out")
    alone = replace(settings, max_positions=20)
    with pytest.raises(UserError, match=r"make \d+; expected at most 20"):
        run(model, tokenizer, checkpoint, data, alone, tmp_path / "out")


def test_seventeen_pictures_run_whatever_rows_of_training_hold(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """The cap of packing is a setting of training: nothing of it is asked here."""
    for at in range(60, 80):
        picture(data / f"captions/images/{at}.png", at)
    rows = [{"image": f"images/{at}.png", "captions": [f"pool {at}"]} for at in range(60, 80)]
    write_rows(data / "captions/more_train.jsonl", rows)
    settings = Settings(shots=(16,), arms=("sighted",), tasks=("captions/mini",), limit=2)
    run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert [answer["prompt"].count("<image>") for answer in lines(tmp_path / "out")] == [17, 17]
