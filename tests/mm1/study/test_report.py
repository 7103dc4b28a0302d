"""The page: whole in itself, honest about what it leaves out, and the same for the same folders."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mm1.runs import Run
from mm1.study.chapters import headline, main_task
from mm1.study.compare import Side, Trained, sides
from mm1.study.plots import COLOURS, count
from mm1.study.report import compare, duration, expected, render, signed, timeline
from mm1.study.samples import SHOWN, samples
from tests.mm1.study.made_up import make_run, make_scores

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every one that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    for name, moe in (("dense", False), ("moe", True)):
        run = make_run(folder / name, moe=moe)
        make_scores(run, "fewshot", folder / "pictures", shots=(0, 4, 8), better=3.0 * moe)
    compare(folder / "dense", folder / "moe", out=folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_needs_nothing_else(page: str) -> None:
    elements = Page(page)
    assert not elements.open
    assert not elements.all("script")
    assert not elements.all("link")
    for _, attributes in elements.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_picture_and_chart_is_described(page: str) -> None:
    elements = Page(page)
    assert len(elements.all("img")) == 2 * SHOWN
    assert all(picture["alt"] for picture in elements.all("img"))
    charts = elements.all("svg")
    assert len(charts) == 2 + 6 + 4 + 2 + 1  # scores, losses, sight, load, throughput
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert any("dense ends at 2.01, moe ends at 1.89" in str(chart["aria-label"]) for chart in charts)


def test_charts_take_the_colours_of_the_page(page: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert all(colour not in charts for colour in COLOURS.values())
    assert {"--a", "--b", "--ink", "--muted", "--rule", "--paper"} <= set(re.findall(r"var\((--\w+)\)", charts))
    assert "prefers-color-scheme: dark" in page


def test_no_id_stands_twice(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    assert used <= set(ids)


def test_the_numbers_of_the_runs_stand_on_the_page(page: str) -> None:
    for shown in (
        "58.0",
        "61.0",
        "36.5",
        "+24.0",
        "−0.118",
        "9.4 M",
        "1.8 M",
        "vision 31 %",
    ):
        assert shown in page, shown
    assert "Both saw the same batches in the same order" in page


def test_the_same_folders_give_the_same_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, moe=True, steps=60)
    for name in ("once", "again"):
        compare(tmp_path / "a", tmp_path / "b", out=tmp_path / name)
    assert (tmp_path / "once").read_text() == (tmp_path / "again").read_text()


def test_what_a_model_says_cannot_break_the_page(pair: tuple[Run, Run], tmp_path: Path) -> None:
    path = pair[0].folder / "eval" / "fewshot" / "answers.jsonl"
    path.write_text(path.read_text().replace('"answer": "red"', '"answer": "</p><script>alert(1)</script>"'))
    compare(pair[0].folder, pair[1].folder, out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not Page(page).open


def test_dense_runs_without_scores_get_a_page_without_those_sections(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, moe=False, steps=100)
    compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for absent in ("Scores after", "Pictures and answers", "Expert load", "<h2>Data", "<h2>Time"):
        assert absent not in page, absent
    assert "Held-out loss at an equal budget" in page


def test_an_arm_that_was_not_asked_is_a_dash(pair: tuple[Run, Run], tmp_path: Path) -> None:
    path = pair[0].folder / "eval" / "fewshot" / "scores.json"
    scores = json.loads(path.read_text())
    for task in scores["tasks"].values():
        task["question_only"] = None
        for score in task["shots"].values():
            score |= {"blind": None, "blind_interval": None}
    path.write_text(json.dumps(scores))
    compare(pair[0].folder, pair[1].folder, out=tmp_path / "report.html")
    assert not Page((tmp_path / "report.html").read_text()).open


def test_samples_are_chosen_by_id_and_not_by_score(pair: tuple[Run, Run]) -> None:
    read = Trained.read(pair[0].folder), Trained.read(pair[1].folder)
    group = samples(read)[0]
    by_hash = sorted(map(str, range(9)), key=lambda id: sha256(id.encode()).digest())
    assert [item["id"] for item in group["items"]] == by_hash[:SHOWN]
    assert group["shots"] == 8
    assert {item["a"]["score"] for item in group["items"]} == {0.0, 100.0}
    assert group["items"][0]["image"].startswith("data:image/jpeg;base64,")


def test_a_picture_that_is_gone_or_broken_leaves_its_answers(pair: tuple[Run, Run], tmp_path: Path) -> None:
    for number, picture in enumerate((tmp_path / "pictures").iterdir()):
        picture.write_bytes(b"\x89PNG\r\n\x1a\n broken")
        if number % 2:
            picture.unlink()
    compare(pair[0].folder, pair[1].folder, out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not Page(page).all("img")
    assert "what colour is the circle?" in page


def test_answers_of_an_evaluation_that_was_stopped_are_shown_as_far_as_they_go(pair: tuple[Run, Run]) -> None:
    for path in pair[0].folder.glob("eval/*/answers.jsonl"):
        path.write_bytes(path.read_bytes()[:-20])
    assert samples((Trained.read(pair[0].folder), Trained.read(pair[1].folder)))


def test_the_headline_is_the_largest_set_of_questions_and_not_the_made_up_words(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, moe=False, steps=20) for name in ("a", "b")]
    for run in runs:
        make_scores(run, "chat", tmp_path / "pictures", shots=(0,), better=0)
        path = run.folder / "eval" / "chat" / "scores.json"
        scores = json.loads(path.read_text())
        tasks = scores["tasks"]
        other = {name: {**tasks["scenes_vqa"], "n": n} for name, n in (("icl", 9999), ("vqa/small", 92))}
        scores["tasks"] = other | tasks
        path.write_text(json.dumps(scores))
    found = headline(sides(*(run.folder for run in runs)))
    assert [(item["n"], item["value"]) for item in found] == [(500, 58.0)] * 2
    assert main_task(Trained.read(runs[0].folder)) is not None


def test_stages_are_drawn_from_when_they_began_to_when_they_ended() -> None:
    stages = {"a": {"began": 0.0, "ended": 10.0}, "b": {"began": 10.0, "ended": 40.0}, "now": {"began": 30.0}}
    found = timeline({"stages": stages})
    assert found["whole"] == 40.0
    assert [(bar["name"], bar["left"], bar["width"]) for bar in found["bars"]] == [("a", 0, 25), ("b", 25, 75)]


def test_numbers_are_written_for_people() -> None:
    assert [count(value) for value in (None, 0, 950, 12_345, 3_100_000, 64.8e9)] == [
        "–",
        "0",
        "950",
        "12.3 k",
        "3.1 M",
        "64.8 B",
    ]
    assert count(2.5e9, "G") == "2.5 G"
    assert (signed(-1.25, 2), signed(3.0)) == ("−1.25", "+3.0")
    assert (duration(59.6), duration(605)) == ("1 min 00 s", "10 min 05 s")
    assert expected(["red"] * 7 + ["orange"]) == "red (7), orange"
    assert expected(["a red circle on the left", "b"]).endswith("left (and 1 more)")


def test_a_page_can_tell_of_two_stages(tmp_path: Path) -> None:
    def side(key: str, name: str) -> Side:
        base = make_run(tmp_path / name, moe=False, steps=60)
        chat = make_run(tmp_path / f"{name}-chat", moe=False, kind="sft", steps=60)
        return Side(key, name, (Trained.read(base.folder), Trained.read(chat.folder)))

    path = render((side("a", "one"), side("b", "two")), tmp_path / "report.html", title="Both", data="Generated.")
    page = path.read_text()
    assert "<h2>Pre-training</h2>" in page
    assert "<h2>Instruction tuning</h2>" in page
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
