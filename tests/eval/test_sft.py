"""Instruction-tuning benchmarks from tiny files of their releases' shape: what is read, asked, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from eval.files import Data
from eval.harness import run
from eval.pictures import read
from eval.prompts import Settings, document
from eval.task import Task, discover
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from mm1.template import turn
from tests.eval import sft_releases as releases
from tests.eval.conftest import picture, write_json

CONFIG = Path(__file__).resolve().parents[2] / "configs/eval/sft.yaml"


@pytest.fixture(scope="module")
def settings() -> Settings:
    parser = ArgumentParser()
    parser.add_class_arguments(Settings, "settings")
    return parser.instantiate(parser.parse_object({"settings": yaml.safe_load(CONFIG.read_text())})).settings


def one(folder: Path, name: str) -> Task:
    [task] = discover(folder, [name])
    return task


def test_every_benchmark_is_asked_end_to_end_and_scored(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, settings: Settings, tmp_path: Path
) -> None:
    """All twelve at once by a tiny random model, with the YAML that users take, but for fewer new tokens."""
    import dataclasses

    short = {
        name: dataclasses.replace(getattr(settings, name), max_new_tokens=4) for name in ("vqa", "choices", "open")
    }
    asked = dataclasses.replace(settings, **short)
    folder = releases.everything(tmp_path / "data")
    scores = run(model, tokenizer, checkpoint, folder, asked, tmp_path / "out")
    assert set(scores["tasks"]) == {
        "ai2d/test",
        "chartqa/test",
        "docvqa/test",
        "docvqa/val",
        "infovqa/val",
        "llava-bench/wild",
        "mathvista/testmini",
        "mm-vet",
        "mmbench/dev_20230712",
        "mmbench/dev_20230712-circular",
        "mme",
        "mmmu/val",
        "pope/coco",
        "scienceqa-img/test",
        "seed/image",
    }
    unscored = {"docvqa/test", "llava-bench/wild", "mm-vet"}
    for name, task in scores["tasks"].items():
        at = task["shots"]["0"]
        assert (at["sighted"] is None) == (name in unscored), name
        assert (at["blind"] is None) == (name in unscored), name
    assert set(scores["tasks"]["mme"]["shots"]["0"]["also"]["sighted"]) == {"perception", "cognition"}
    assert set(scores["tasks"]["chartqa/test"]["shots"]["0"]["groups"]) == {"human", "augmented"}
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * sum(task["n"] for task in scores["tasks"].values())
    again = run(model, tokenizer, checkpoint, folder, asked, tmp_path / "out")
    assert again == scores, "and a rerun asks nothing anew: unpacked pictures keep their names"


def test_hints_are_llavas_and_mmmu_mixes_two_of_them(settings: Settings, tmp_path: Path) -> None:
    releases.mmmu(tmp_path)
    task = one(tmp_path, "mmmu/val")
    prompts = [document(task.asked(query), [], task.kind, settings, read) for query in task.queries]
    texts = ["".join("#" if isinstance(item, Image) else item.text for item in prompt) for prompt in prompts]
    letter = "Answer with the option's letter from the given choices directly.\nAssistant:"
    assert texts[0] == f"User: See # . Which?\nA. # B. red\n{letter}"
    assert [text.endswith(letter) for text in texts] == [True, True, False]
    assert texts[2].endswith("Answer the question using a single word or phrase.\nAssistant:")
    assert [text.count("#") for text in texts] == [2, 2, 1]
    assert texts[1].startswith("#User: and # : which?\nA. a\nB. b")
    assert texts[2].startswith("#User: How many?")
    shown = [item.data for item in prompts[1] if isinstance(item, Image)]
    assert shown == [releases.png(3), releases.png(4)]


def test_a_prompt_is_spelled_as_instruction_data_is(settings: Settings, tmp_path: Path) -> None:
    releases.science_qa(tmp_path)
    task = one(tmp_path, "scienceqa-img/test")
    assert [query.id for query in task.queries] == ["1", "3"], "with a picture, of the test part"
    assert [query.id for query in task.train] == ["4"]
    [image, text] = document(task.asked(task.queries[0]), [], task.kind, settings, read)
    question = (
        "Context: Look at the colours.\nWhich is red?\nA. a dako\nB. a wupi\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (isinstance(image, Image), (text,)) == (True, turn(question))
    assert task.queries[0].groups == ("natural science", "physics", "grades 1-6")
    assert task.queries[1].groups[-1] == "grades 7-12"


def test_mathvista_is_the_same_from_json_and_from_parquet(tmp_path: Path) -> None:
    found = {}
    for form in ("json", "parquet"):
        releases.mathvista(tmp_path / form, form)
        found[form] = one(tmp_path / form, "mathvista/testmini").queries
    for ours, theirs in zip(found["json"], found["parquet"], strict=True):
        assert (ours.question, ours.references, ours.about) == (theirs.question, theirs.references, theirs.about)
        assert theirs.picture.parent.name.endswith(".parquet.pictures")
        assert theirs.picture.read_bytes() == releases.png(int(theirs.id))


def test_pictures_are_unpacked_once_and_elsewhere_where_they_cannot_lie_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.mmbench(tmp_path)
    first = one(tmp_path, "mmbench/dev_20230712")
    assert first.queries[2].picture == first.queries[0].picture, "the row names the other row's picture"
    times = {query.picture: query.picture.stat().st_mtime_ns for query in first.queries}
    assert {q.picture: q.picture.stat().st_mtime_ns for q in one(tmp_path, first.name).queries} == times
    shutil.rmtree(first.queries[0].picture.parent)
    monkeypatch.setattr("eval.unpack.os.access", lambda path, mode: False)
    monkeypatch.setenv("MM1_CACHE", str(tmp_path / "cache"))
    elsewhere = one(tmp_path, "mmbench/dev_20230712").queries[0].picture
    assert elsewhere.is_relative_to(tmp_path / "cache")
    assert elsewhere.read_bytes() == releases.png(1)


def test_circular_turns_move_the_choices_and_their_letter(tmp_path: Path) -> None:
    releases.mmbench(tmp_path)
    queries = one(tmp_path, "mmbench/dev_20230712-circular").queries
    of = [query for query in queries if query.about["turns_of"] == "0"]
    assert [query.id for query in of] == ["0", "0/1", "0/2", "0/3"]
    assert [query.choices for query in of[:2]] == [("red", "green", "blue", "grey"), ("green", "blue", "grey", "red")]
    for query in queries:
        assert query.choices["ABCDE".index(query.about["letter"])] == query.answer
    assert len(queries) == 4 + 4 + 2
    hinted = next(query for query in queries if query.id == "1")
    assert hinted.question == "A hint.\nWhat is shown?"


def test_seeds_videos_count_where_their_frames_are(tmp_path: Path) -> None:
    releases.seed(tmp_path)
    assert [task.name for task in discover(tmp_path)] == ["seed/image"]
    releases.seed(tmp_path, frames=True)
    whole = one(tmp_path, "seed/all")
    assert [query.groups[0] for query in whole.queries] == ["image", "image", "video"]
    assert [query.about["letter"] for query in whole.queries] == ["A", "B", "C"]


def test_folders_of_pictures_may_be_named(tmp_path: Path) -> None:
    releases.documents(tmp_path / "data")
    shutil.move(tmp_path / "data/docvqa/documents", tmp_path / "elsewhere")
    task = discover(Data(tmp_path / "data", {"docvqa": str(tmp_path / "elsewhere")}), ["docvqa/val"])[0]
    assert task.queries[0].picture == tmp_path / "elsewhere/0.png"
    assert task.train[0].id == "1"
    with pytest.raises(UserError, match="2 of 2 questions are about pictures that do not exist"):
        one(tmp_path / "data", "docvqa/val")


def _pope_label(folder: Path) -> None:
    path = folder / "pope/coco_pope_random.json"
    path.write_text(path.read_text().replace('"label": "yes"', '"label": "maybe"', 1))


def _mme_tab(folder: Path) -> None:
    (folder / "MME_Benchmark_release_version/existence/0.txt").write_text("Is it a dog? Yes\n")


def _mmbench_base64(folder: Path) -> None:
    path = folder / "mmbench/mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("iVBOR", "!!!!!", 1))


def _mmbench_columns(folder: Path) -> None:
    (folder / "mmbench/mmbench_dev_20230712.tsv").write_text("index\tquestion\n1\tWhat?\n")


def _mmmu_picture(folder: Path) -> None:
    rows = [{"id": "validation_Art_1", "question": "<image 2>?", "options": "['a']", "answer": "A"}]
    rows[0] |= {"question_type": "multiple-choice", "image_1": {"bytes": releases.png(1), "path": ""}}  # type: ignore
    releases.parquet(folder / "MMMU/Art/validation-00000-of-00001.parquet", rows)


def _mmmu_type(folder: Path) -> None:
    rows = [{"id": "validation_Art_1", "question": "?", "options": "[]", "answer": "A", "question_type": "x"}]
    rows[0] |= {"image_1": {"bytes": releases.png(1), "path": ""}}  # type: ignore
    releases.parquet(folder / "MMMU/Art/validation-00000-of-00001.parquet", rows)


def _mmmu_file(folder: Path) -> None:
    (folder / "MMMU/Art/validation-00000-of-00001.parquet").write_text("no parquet")


def _science_split(folder: Path) -> None:
    write_json(folder / "scienceqa/pid_splits.json", {"test": ["1", "99"], "train": []})


def _seed_answer(folder: Path) -> None:
    path = folder / "seed/SEED-Bench.json"
    path.write_text(path.read_text().replace('"answer": "A"', '"answer": "E"'))


def _seed_no_answer(folder: Path) -> None:
    path = folder / "seed/SEED-Bench.json"
    path.write_text(path.read_text().replace('"answer": "A"', '"answer": ""'))


def _mme_bytes(folder: Path) -> None:
    next(folder.rglob("existence/0.txt")).write_bytes(b"\xff\xfe\x81")


def _ai2d_bytes(folder: Path) -> None:
    next(folder.rglob("ai2d_test_ids.csv")).write_bytes(b"\xff\xfe\x81")


def _chart_fields(folder: Path) -> None:
    write_json(folder / "ChartQA Dataset/test/test_human.json", [{"imgname": "0.png", "question": "How many?"}])


def _ai2d_unknown(folder: Path) -> None:
    (folder / "ai2d/ai2d_test_ids.csv").write_text("0\n7\n")


def _bench_context(folder: Path) -> None:
    path = folder / "llava-bench-in-the-wild/context.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def _vet_skills(folder: Path) -> None:
    write_json(folder / "mm-vet/mm-vet.json", {"v1_0": {"imagename": "v1_0.png", "question": "?", "answer": "a"}})


def _docvqa_half(folder: Path) -> None:
    path = folder / "docvqa/val_v1.0_withQT.json"
    path.write_text(path.read_text().replace('"answers": ["The Dako", "dako"], ', "", 1))


def _docvqa_train(folder: Path) -> None:
    shutil.copy(folder / "docvqa/train_v1.0_withQT.json", folder / "docvqa/val_v1.0_withQT.json")


def _science_row(folder: Path) -> None:
    path = next(folder.rglob("problems.json"))
    write_json(path, {**json.loads(path.read_text()), "1": 1.5})


def _pope_twice(folder: Path) -> None:
    picture(folder / "other/x.png", 1)
    shutil.copy(folder / "pope/coco_pope_random.json", folder / "other/coco_pope_random.json")


@pytest.mark.parametrize(
    ("write", "spoil", "told"),
    [
        (releases.pope, _pope_label, "has label 'maybe'; expected yes or no"),
        (releases.pope, _pope_twice, "both stand in"),
        (releases.mme, _mme_tab, "expected a question, a tab, and Yes or No"),
        (releases.mmbench, _mmbench_base64, r"row 0 has an image '!!!!!.*expected base64"),
        (releases.mmbench, _mmbench_columns, "row 1 has index, question; expected also image, A, B"),
        (releases.mmmu, _mmmu_picture, "names <image 2>, and image_2 is empty"),
        (releases.mmmu, _mmmu_type, "has question_type 'x'; expected "),
        (releases.mmmu, _mmmu_file, "is not readable as parquet"),
        (releases.science_qa, _science_split, "lacks question 99 of test"),
        (releases.seed, _seed_answer, "question 100 has answer 'E'; expected one of A, B, C, D"),
        (releases.seed, _seed_no_answer, "question 100 has answer ''; expected one of A, B, C, D"),
        (releases.chartqa, _chart_fields, "entry 1 has imgname, question; expected also query, label"),
        (releases.ai2d, _ai2d_bytes, "ai2d_test_ids.csv is not readable as text"),
        (releases.mme, _mme_bytes, "existence/0.txt is not readable as text"),
        (releases.ai2d, _ai2d_unknown, "names diagram 7, of which"),
        (releases.llava_bench, _bench_context, "has nothing for question 1 about 001.jpg"),
        (releases.mm_vet, _vet_skills, "expected also capability"),
        (releases.documents, _docvqa_half, "answers to some questions only"),
        (releases.documents, _docvqa_train, "question 1 has data_split 'train'; expected 'val', as its name says"),
        (releases.science_qa, _science_row, "question 1 has float; expected also question, choices, answer"),
    ],
)
def test_a_file_of_the_wrong_shape_is_one_sentence(
    write: Callable[[Path], None], spoil: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=told):
        discover(tmp_path)


def test_parts_that_are_missing_are_said(tmp_path: Path) -> None:
    releases.chartqa(tmp_path)
    releases.pope(tmp_path)
    releases.mme(tmp_path)
    (tmp_path / "ChartQA Dataset/test/test_human.json").unlink()
    (tmp_path / "pope/coco_pope_popular.json").unlink()
    warnings = {task.name: " ".join(task.warnings) for task in discover(tmp_path)}
    assert "without human" in warnings["chartqa/test"]
    assert "without popular, so that the mean is not POPE's" in warnings["pope/coco"]
    assert "without count, position" in warnings["mme"]


def test_demonstrations_have_their_letter_in_a_chat(settings: Settings, tmp_path: Path) -> None:
    releases.ai2d(tmp_path)
    task = one(tmp_path, "ai2d/test")
    shot = task.asked(task.train[0])
    items = document(task.asked(task.queries[0]), [shot], task.kind, settings, read)
    assert Text("C", end=True, after_space=True) in items
