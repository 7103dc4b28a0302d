"""The sheet of photographs: which are chosen is a rule, and every one that is chosen is drawn with its words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from mm1.errors import UserError
from mm1.study.__main__ import main
from mm1.study.grid import best_middle_worst, grid, nearest, right_and_wrong
from mm1.study.plots import COLOURS
from mm1.study.samples import picture_file
from mm1.study.sheet import GOOD, wrapped


def answer(at: int, score: float, **others: object) -> dict:
    same = {"task": "captions/t", "shots": 0, "arm": "sighted", "answer": f"picture {at}", "question": ""}
    return {**same, "id": f"{at}", "image": f"{at}.png", "references": [f"a picture {at}"], "score": score, **others}


def ids(kinds: list) -> list[list[str]]:
    return [[one["id"] for one in kind.answers] for kind in kinds]


def test_captions_come_from_both_ends_and_the_middle() -> None:
    answers = [answer(at, score) for at, score in enumerate([50, 10, 90, 30, 70, 20, 80, 40, 60])]
    kinds = best_middle_worst(answers, 2)
    assert ids(kinds) == [["2", "6"], ["8", "0"], ["5", "1"]]
    assert [kind.name for kind in kinds] == ["The 2 best", "The 2 around the median", "The 2 worst"]
    assert ids(best_middle_worst(answers[::-1], 2)) == ids(kinds), "a function of scores and ids alone"
    with pytest.raises(UserError, match=r"9 answers for 3 rows of 4; expected at least 12"):
        best_middle_worst(answers, 4)


def test_equal_scores_are_ordered_by_a_hash_that_nobody_chose() -> None:
    answers = [answer(at, 0) for at in range(12)]
    order = [id for row in ids(best_middle_worst(answers, 4)) for id in row]
    assert sorted(order, key=int) == [f"{at}" for at in range(12)]
    assert order != sorted(order, key=int)
    assert order == [id for row in ids(best_middle_worst(answers[::-1], 4)) for id in row]


def test_questions_are_right_or_wrong_and_each_about_another_picture() -> None:
    answers = [answer(at, 100 * (at % 3 == 0), image=f"{at // 2}.png") for at in range(12)]
    right, wrong = right_and_wrong(answers, 4)
    assert (right.name, wrong.name) == ("Right, 33 % of all", "Wrong, 67 % of all")
    pictures = [one["image"] for one in (*right.answers, *wrong.answers)]
    assert len(set(pictures)) == len(pictures)
    assert {one["score"] for one in right.answers} == {100}
    assert {one["score"] for one in wrong.answers} == {0}


def test_the_nearest_reference_shares_most_words() -> None:
    assert nearest("a dog runs", ["A cat sits.", "The dog runs fast .", "a"]) == "The dog runs fast ."


def test_lines_are_no_wider_than_their_space_and_lose_no_word() -> None:
    text = "a dog runs over a meadow towards extraordinarilylongwords"
    lines = wrapped(text, "bold", 24, 150)
    assert " ".join(lines) == text
    assert len(lines) >= 4
    assert wrapped("", "plain", 20, 100) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Answers about twelve pictures that lay somewhere else when the model was asked."""
    answers = []
    for at in range(12):
        path = tmp_path / f"data/captions_eval/images/{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 20 + 10 * (at % 5)), (250, at, 1)).save(path)
        where = {"image": f"/elsewhere/data/captions_eval/images/{at}.png"}
        answers += [answer(at, at, **where), answer(at, 1, arm="blind", **where), answer(at, 0, shots=4, **where)]
        answers.append(answer(at, 100 * (at % 2), task="vqa/t", question="what ?", **where))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    return tmp_path


def colours(path: Path) -> set:
    with Image.open(path) as sheet:
        return {colour for _, colour in sheet.getcolors(1 << 24)}


def test_the_sheet_shows_the_chosen_pictures_and_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(folder, task="captions/t", data=folder / "data", across=2, out=folder / "new/grid.png")
    assert {(250, at, 1) for at in (11, 10, 6, 5, 1, 0)} == {
        colour for colour in colours(folder / "new/grid.png") if colour[0] == 250 and colour[2] == 1
    }
    told = capsys.readouterr().out.splitlines()
    assert told == [
        str(folder / "new/grid.png"),
        "no licence is recorded for these photographs: a sheet to look at, not to pass on",
    ]


def test_right_answers_are_marked_in_their_colour(folder: Path) -> None:
    grid(folder, task="vqa/t", data=folder / "data", out=folder / "grid.png")
    found = colours(folder / "grid.png")
    assert tuple(bytes.fromhex(GOOD[1:])) in found
    assert tuple(bytes.fromhex(COLOURS["ink"][1:])) in found


def test_credits_are_written_where_the_data_knows_all_of_them(folder: Path) -> None:
    about = {"licenses": [{"id": 1, "name": "BY", "url": "http://by"}]}
    images = [{"id": at, "license": 1, "flickr_url": f"http://flickr/{at}"} for at in range(12)]
    source = folder / "data/captions_eval/t.json"
    for changed, expected in (({}, True), ({"license": 9}, False)):
        source.write_text(json.dumps({**about, "images": [*images[:-1], {**images[-1], **changed}]}))
        (folder / "grid.credits.md").unlink(missing_ok=True)
        grid(folder, task="captions/t", data=folder / "data", across=1, out=folder / "grid.png")
        assert (folder / "grid.credits.md").exists() == expected
        if expected:
            lines = (folder / "grid.credits.md").read_text().splitlines()
            assert lines[0] == "* [11](http://flickr/11), [BY](http://by), scaled down"
            assert len(lines) == 3


def test_a_page_links_photographs_and_says_their_licence(folder: Path) -> None:
    about = {"licenses": [{"id": 1, "name": "BY", "url": "http://by"}]}
    images = [{"id": at, "license": 1, "flickr_url": f"http://flickr/{at}"} for at in range(12)]
    images[11]["coco_url"] = "http://coco/11.jpg"
    source = folder / "data/captions_eval/t.json"
    source.write_text(json.dumps({**about, "images": images}))
    page = folder / "grid.md"
    grid(folder, task="captions/t", data=folder / "data", across=1, out=page)
    text = page.read_text()
    assert text.count("<img ") == text.count('"http://by"') == 3
    assert '<a href="http://flickr/11"><img src="http://coco/11.jpg"></a><br>picture 11<br>' in text
    assert '<img src="http://flickr/0">' in text
    assert "mean CIDEr 5.5, n = 12" in text
    assert text.rstrip().endswith("From top to bottom: the 1 best, the 1 around the median, the 1 worst.")
    source.write_text(json.dumps({**about, "images": images[1:]}))
    with pytest.raises(UserError, match=r"no address and licence are known of .*0\.png; expected coco_url"):
        grid(folder, task="captions/t", data=folder / "data", across=1, out=page)


def test_a_picture_is_found_at_the_longest_end_of_its_path(tmp_path: Path) -> None:
    for name in ("a.png", "images/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert picture_file("/elsewhere/images/a.png", tmp_path) == tmp_path / "images/a.png"
    assert picture_file("/elsewhere/other/a.png", tmp_path) == tmp_path / "a.png"
    assert picture_file("/elsewhere/other/a.png") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FOLDER"], "has answers to captions/t, vqa/t; expected one of them as --task"),
        (["FOLDER", "--task", "vqa/other"], "expected one of them as --task"),
        (["FOLDER", "--task", "captions/t", "--shots", "8"], "no sighted answers to captions/t at 8 shots"),
        (["FOLDER", "--task", "captions/t"], "is not there; expected the picture, or --data"),
        (["FOLDER/nowhere"], "is no file; expected an answers.jsonl"),
        (["FOLDER", "--task", "captions/t", "--across", "0"], "across is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    folder: Path, words: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-study", "grid", *(word.replace("FOLDER", str(folder)) for word in words)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
