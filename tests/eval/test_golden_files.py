"""Results files graded on files of the official shape: scores of pycocoevalcap with its Java tokeniser, and by hand.

Of every picture six people said its colour and four said dark (``releases.answers_of``), or wrote five captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.files import Data
from eval.results import grade
from tests.eval import releases
from tests.eval.releases import COUNT, WORDS


def caption(at: int) -> str:
    return (f"A {WORDS[at % 6]} square, number 2.", f"The {WORDS[at % 6]} square!", "two dogs (running)")[at % 3]


def graded(tmp_path: Path, task: str, rows: list[dict]) -> dict:
    (tmp_path / "results.json").write_text(json.dumps(rows))
    return grade(tmp_path / "results.json", Data(tmp_path / "data"), task)["shots"]["0"]


@pytest.mark.parametrize(
    ("write", "task", "first", "id"),
    [
        (releases.coco, "coco/karpathy-test", 830, int),
        (releases.textcaps, "textcaps/val", 540, "{:x}".format),
        (releases.flickr30k, "flickr30k/test", 930, int),
        (releases.nocaps, "nocaps/val", 0, int),
    ],
)
def test_captions_score_as_the_official_pipeline_says(
    tmp_path: Path, write: Callable[[Path], None], task: str, first: int, id: Callable[[int], object]
) -> None:
    """The same captions in another order of colours: what pycocoevalcap 1.2 with its Java tokeniser makes of each."""
    write(tmp_path / "data")
    at = graded(tmp_path, task, [{"image_id": id(n), "caption": caption(n)} for n in range(first, first + COUNT)])
    assert at["sighted"] == pytest.approx(395.1562, abs=1e-3)
    assert at["also"]["sighted"]["BLEU-4"] == pytest.approx(42.0209, abs=1e-3)
    assert at["also"]["sighted"]["ROUGE-L"] == pytest.approx(49.281, abs=1e-3)


def test_a_domain_of_nocaps_scores_as_if_it_were_alone(tmp_path: Path) -> None:
    releases.nocaps(tmp_path / "data")
    at = graded(tmp_path, "nocaps/val", [{"image_id": n, "caption": caption(n)} for n in range(COUNT)])
    found = {name: (of["n"], pytest.approx(of["sighted"], abs=1e-3)) for name, of in at["groups"].items()}
    assert found == {"in-domain": (2, 900), "near-domain": (2, 285.4685), "out-domain": (2, 0)}


@pytest.mark.parametrize(
    ("write", "task", "first", "key", "id"),
    [
        (releases.vqav2, "vqav2/val", 200, "question_id", lambda at: 1000 * at),
        (releases.okvqa, "okvqa/val", 600, "question_id", lambda at: 1000 * at),
        (releases.textvqa, "textvqa/val", 510, "question_id", int),
        (releases.vizwiz, "vizwiz/val", 610, "image", "VizWiz_val_{:08d}.jpg".format),
    ],
)
def test_accuracy_of_ten_answers_by_hand(
    tmp_path: Path, write: Callable[[Path], None], task: str, first: int, key: str, id: Callable[[int], object]
) -> None:
    """The colour, dark with an article, and four that nobody said: 2 of 6; one of the four is empty."""
    write(tmp_path / "data")
    said = [WORDS[first % 6].upper(), "the dark.", "", "purple", "dark dark", "n/a"]
    at = graded(tmp_path, task, [{key: id(first + n), "answer": answer} for n, answer in enumerate(said)])
    assert at["sighted"] == pytest.approx(100 * 2 / 6)


def test_stems_of_okvqa_by_hand(tmp_path: Path) -> None:
    """Raw answers end in s here: stemmed all six are right; as they are none against ``answer``, all against raw."""
    releases.okvqa(tmp_path / "data")
    rows = [{"question_id": 1000 * at, "answer": WORDS[at % 6] + "s"} for at in range(600, 606)]
    at = graded(tmp_path, "okvqa/val", rows)
    assert (at["sighted"], at["also"]["sighted"]) == (100, {"answer, prediction as it is": 0, "raw_answer": 100})
    assert at["groups"]["Vehicles"]["sighted"] == 100


def test_accuracy_of_gqa_by_hand(tmp_path: Path) -> None:
    """Answers of 710 to 715: a colour, yes or no by turns; yes to all is right where 711 and 715 say so or not."""
    releases.gqa(tmp_path / "data")
    questions = json.loads((tmp_path / "data/gqa/questions/testdev_balanced_questions.json").read_text())
    assert [row["answer"] for row in questions.values()] == ["blue", "no", "white", "yes", "red", "no"]
    at = graded(tmp_path, "gqa/testdev", [{"questionId": id, "prediction": "Yes."} for id in questions])
    assert at["sighted"] == pytest.approx(100 / 6)
    assert {name: of["sighted"] for name, of in at["groups"].items()} == {
        "open": 0,
        "query": 0,
        "binary": pytest.approx(100 / 3),
        "verify": pytest.approx(100 / 3),
    }


def test_accuracy_of_daquar_by_hand(tmp_path: Path) -> None:
    """Three windows and three garbage bins."""
    releases.daquar(tmp_path / "data")
    rows = [{"question_id": f"qa.37.raw.test/{n}", "answer": "A window"} for n in range(1, 7)]
    assert graded(tmp_path, "daquar/37-test", rows)["sighted"] == 50
