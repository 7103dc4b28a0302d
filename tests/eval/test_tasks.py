"""Benchmarks are found by their layout, and what is wrong with a file is said in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.baselines import constant, question_only
from eval.files import Data
from eval.task import Task, discover
from mm1.errors import UserError
from tests.eval.conftest import picture

SHARED = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))


def by_name(data: Path) -> dict[str, Task]:
    return {task.name: task for task in discover(data)}


def test_every_benchmark_of_a_folder_is_found(data: Path) -> None:
    tasks = by_name(data)
    found = {name: (task.metric, len(task.queries), len(task.train)) for name, task in tasks.items()}
    assert found == {
        "captions/mini": ("cider", 6, 10),
        "vqa/mini": ("vqa_accuracy", 8, 0),
        "vqa/daquar": ("vqa_accuracy", 5, 5),
        "icl": ("vqa_accuracy", 3, 0),
    }
    assert tasks["captions/mini"].queries[2].references == ("a green picture number 2", "a red picture number 2")
    assert tasks["vqa/mini"].queries[0].answer == "red"
    assert tasks["vqa/daquar"].queries[0].answer == "wall clock"


def test_captions_that_are_never_trained_on_are_no_demonstrations(data: Path) -> None:
    assert {query.answer for query in by_name(data)["captions/mini"].train} == {f"pool {at}" for at in range(4, 14)}


def test_a_limit_chooses_by_seed_and_id_alone(data: Path) -> None:
    task = by_name(data)["vqa/mini"]
    some = {query.id for query in task.limited(3, seed=1).queries}
    more = {query.id for query in task.limited(5, seed=1).queries}
    assert len(some) == 3
    assert some < more
    assert {frozenset(q.id for q in task.limited(3, seed).queries) for seed in range(8)} != {frozenset(some)}


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_missing_pictures_are_named(data: Path) -> None:
    (data / "captions_eval/images/3.png").unlink()
    with pytest.raises(
        UserError, match=r"captions/mini: 1 of 6 questions are about pictures that do not exist, the first is .*3\.png"
    ):
        discover(data)


def test_what_does_not_look_reads_train_questions_whose_pictures_are_missing(data: Path) -> None:
    """Else the baseline would be made of the very answers that are scored."""
    for name in ("test", "train"):
        path = data / f"vqa/daquar/{name}.jsonl"
        path.write_text(path.read_text().replace("wall_clock", "lamp" if name == "train" else "clock"))
    shutil.rmtree(data / "vqa/daquar/images")
    for at in range(5):
        picture(data / f"vqa/daquar/images/{at}.png", at)
    [task] = discover(data, ["vqa/daquar"])
    assert not task.train
    assert "demonstrations are scored questions" in " ".join(task.warnings)
    assert question_only(task.limited(3, 0)) == constant(task) == 0, "nobody in the train part says clock"


def test_a_benchmark_without_any_of_its_pictures_is_refused(data: Path) -> None:
    """However many may be missing: there would be nothing to score."""
    shutil.rmtree(data / "icl/images")
    with pytest.raises(UserError, match="icl: no picture of its 3 questions exists; expected some"):
        discover(Data(data, max_missing_share=1))


def test_a_line_of_text_may_hold_what_unicode_calls_a_line_end(data: Path) -> None:
    path = data / "vqa/daquar/test.jsonl"
    path.write_text(path.read_text().replace("what is thing 3", "what\u2028is\u0085thing 3"))
    [task] = discover(data, ["vqa/daquar"])
    assert [query.question for query in task.queries][3] == "what\u2028is\u0085thing 3 ?"


def test_a_question_without_answers_is_named(data: Path) -> None:
    edit(data / "vqa/mini/annotations.json", lambda value: value["annotations"].pop(2))
    with pytest.raises(UserError, match="no answers to question 102"):
        discover(data)


def test_ids_that_stand_twice_are_named(data: Path) -> None:
    edit(data / "vqa/mini/questions.json", lambda value: value["questions"].append(value["questions"][0]))
    with pytest.raises(UserError, match="id 100 on 2 questions"):
        discover(data)


def test_a_file_of_another_shape_is_told_apart(data: Path) -> None:
    edit(data / "captions_eval/mini.json", lambda value: value["annotations"][1].pop("caption"))
    with pytest.raises(UserError, match=r"entry 2 has image_id; expected also caption"):
        discover(data)


def edit_row(path: Path, change: Callable[[dict], object]) -> None:
    first, *others = path.read_text().splitlines(keepends=True)
    row = json.loads(first)
    change(row)
    path.write_text(json.dumps(row) + "\n" + "".join(others))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("captions_eval/mini.json", lambda v: v["images"][1].update(path=3), r"entry 2 has path = 3; expected str"),
        (
            "captions_eval/mini.json",
            lambda v: v["annotations"][0].update(caption=None),
            r"caption = None; expected str",
        ),
        ("vqa/mini/questions.json", lambda v: v["questions"][0].update(image_id="x"), r"image_id = 'x'; expected int"),
        ("vqa/mini/questions.json", lambda v: v["questions"][0].update(question=7), r"question = 7; expected str"),
        (
            "vqa/mini/annotations.json",
            lambda v: v["annotations"][0]["answers"][2].update(answer=None),
            r"the answers of question 100 are .*; expected a list of {\"answer\": text}",
        ),
        ("vqa/daquar/test.jsonl", lambda row: row.update(answer=3), r"entry 1 has answer = 3; expected str"),
        ("icl/test.jsonl", lambda row: row.update(items=None), r"entry 1 has items = None; expected list"),
        ("icl/test.jsonl", lambda row: row.update(answers="dako"), r"answers of row l0 has 'dako'; expected a list"),
        ("icl/test.jsonl", lambda row: row.update(choices=[1, 2]), r"choices of row l0 has \[1, 2\]; expected a list"),
    ],
)
def test_a_field_of_another_type_is_told(data: Path, file: str, change: Callable[[dict], object], told: str) -> None:
    (edit_row if file.endswith("l") else edit)(data / file, change)
    with pytest.raises(UserError, match=told):
        discover(data)


def test_faulty_rows_that_training_left_out_demonstrate_nothing(data: Path) -> None:
    rows = [b'{"image": "images/4.png", "captions": ["half', b"[]", b'{"image": 3, "captions": ["x"]}', b"\xff"]
    rows += [b'{"image": "images/4.png", "captions": "no list"}', b'{"image": "images/4.png", "captions": [" "]}']
    with (data / "captions/pool_train.jsonl").open("ab") as lines:
        lines.write(b"\n".join(rows))
    assert {query.answer for query in by_name(data)["captions/mini"].train} == {f"pool {at}" for at in range(4, 14)}


def test_a_benchmark_without_questions_is_told(data: Path) -> None:
    (data / "icl/test.jsonl").write_text("")
    with pytest.raises(UserError, match="holds icl without a single question"):
        discover(data)


def test_a_file_that_is_no_json_is_told(data: Path) -> None:
    (data / "vqa/daquar/test.jsonl").write_text("what is this ?")
    with pytest.raises(UserError, match="not readable as JSON lines"):
        discover(data)


def test_a_caption_of_an_unknown_picture_is_told(data: Path) -> None:
    edit(data / "captions_eval/mini.json", lambda v: v["annotations"].append({"image_id": 99, "caption": "lost"}))
    with pytest.raises(UserError, match="captions for picture 99"):
        discover(data)


def test_a_lesson_must_end_with_the_picture_asked_about(data: Path) -> None:
    row = json.loads((data / "icl/test.jsonl").read_text().splitlines()[0])
    (data / "icl/test.jsonl").write_text(json.dumps({**row, "items": row["items"][:-1]}))
    with pytest.raises(UserError, match="row l0 does not end with a picture"):
        discover(data)


@pytest.mark.parametrize("folder", ["nowhere", "captions"])
def test_a_folder_without_benchmarks_is_told(data: Path, folder: str) -> None:
    with pytest.raises(UserError, match=r"no folder|no benchmark"):
        discover(data / folder)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small real corpus is not there")
def test_real_files_are_read() -> None:
    counts = {task.name: (len(task.queries), len(task.train)) for task in discover(SHARED)}
    assert counts["vqa/daquar"] == (1077, 3292)
    assert counts["vqa/vqav2_mini"] == (92, 0)
    assert counts["captions/flickr8k_dev"] == (263, 1311)
