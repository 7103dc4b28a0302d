"""The written folder: the same bytes for the same seed, whole files, and the layout every door reads."""

import hashlib
import json

import PIL.Image
import pytest

from data_pipelines.scenes import write
from data_pipelines.scenes.world import from_dict
from data_pipelines.sources.scored import scored_pictures
from mm1.errors import UserError

SMALL = {"worlds": 60, "test_worlds": 12}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    write(folder, **SMALL)
    return folder


def read(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_seed_gives_the_same_bytes(corpus, tmp_path):
    write(tmp_path / "again", **SMALL)
    assert digests(tmp_path / "again") == digests(corpus)


def test_another_seed_gives_other_pictures_and_rows(corpus, tmp_path):
    write(tmp_path / "other", **SMALL, seed=1)
    one, other = digests(corpus), digests(tmp_path / "other")
    same = {path for path in one.keys() & other.keys() if one[path] == other[path]}
    assert not same


def test_a_larger_corpus_begins_with_the_smaller_one(corpus, tmp_path):
    write(tmp_path / "larger", **{**SMALL, "worlds": 100})
    smaller, larger = (lines(folder / "captions" / "train.jsonl") for folder in (corpus, tmp_path / "larger"))
    assert (len(smaller), len(larger)) == (60, 100)
    assert larger[:60] == smaller


def test_every_picture_opens_and_has_its_scene_written_down(corpus):
    pictures = lines(corpus / "pictures.jsonl")
    assert {corpus / row["image"] for row in pictures} == set(corpus.rglob("*.jpg"))
    for row in pictures:
        with PIL.Image.open(corpus / row["image"]) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
        assert from_dict(row["scene"]).world == row["world"]


def test_no_scene_that_is_scored_is_trained_on(corpus):
    pictures = {corpus / row["image"]: from_dict(row["scene"]).meaning for row in lines(corpus / "pictures.jsonl")}
    scored = set(scored_pictures(corpus))
    assert len(scored) >= 3 * SMALL["test_worlds"]
    trained = {meaning for path, meaning in pictures.items() if path not in scored}
    assert len(trained) > 60
    assert not trained & {pictures[path] for path in scored}


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_have_the_fields_of_vqa_v2(corpus, split):
    folder = corpus / "vqa" / "scenes"
    asked, answered = read(folder / f"{split}_questions.json"), read(folder / f"{split}_annotations.json")
    assert {"info", "task_type", "data_type", "data_subtype", "questions"} <= set(asked)
    assert asked["data_subtype"] == answered["data_subtype"] == split
    assert (
        len({row["question_id"] for row in asked["questions"]}) == len(asked["questions"]) >= 2 * SMALL["test_worlds"]
    )
    for question, annotation in zip(asked["questions"], answered["annotations"], strict=True):
        assert set(question) == {"image_id", "question", "question_id"}
        fields = {"question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"}
        assert set(annotation) == fields
        assert [annotation[key] for key in ("image_id", "question_id")] == [
            question["image_id"],
            question["question_id"],
        ]
        assert annotation["answer_type"] in ("yes/no", "number", "other")
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert all(set(answer) == {"answer", "answer_confidence", "answer_id"} for answer in annotation["answers"])
        assert sum(a["answer"] == annotation["multiple_choice_answer"] for a in annotation["answers"]) >= 8
        assert (folder / "images" / f"COCO_{split}_{question['image_id']:012d}.jpg").is_file()


def test_caption_references_are_in_cocos_format(corpus):
    value = read(corpus / "captions_eval" / "scenes.json")
    assert len(value["images"]) == SMALL["test_worlds"]
    for image in value["images"]:
        assert (corpus / "captions_eval" / image["path"]).name == image["file_name"]
        assert (corpus / "captions_eval" / image["path"]).is_file()
        assert sum(row["image_id"] == image["id"] for row in value["annotations"]) == 5


def test_streams_point_at_pictures_that_are_there(corpus):
    for row in lines(corpus / "captions" / "train.jsonl"):
        assert (corpus / "captions" / row["image"]).is_file()
        assert row["captions"]
    for folder, name in (("interleaved", "docs.jsonl"), ("icl", "test.jsonl")):
        rows = lines(corpus / folder / name)
        assert len({row["id"] for row in rows}) == len(rows) >= 12
        for item in (item for row in rows for item in row["items"]):
            assert item["text"] if item["type"] == "text" else (corpus / folder / item["image"]).is_file()
    talks = read(corpus / "sft" / "conversations.json")
    assert {"image" in row for row in talks} == {True, False}
    for row in talks:
        said = [turn["value"] for turn in row["conversations"]]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(said) // 2)
        assert sum(value.count("<image>") for value in said) == ("image" in row)
        assert "image" not in row or (corpus / row["image"]).is_file()


def test_lessons_end_with_the_picture_asked_about(corpus):
    for row in lines(corpus / "icl" / "test.jsonl"):
        assert row["items"][-1]["type"] == "image"
        assert len(row["answers"]) == 10
        assert row["answers"][0] in row["choices"]
        told = " ".join(item.get("text", "") for item in row["items"])
        assert all(told.count(choice) == 1 for choice in row["choices"])


def test_everything_says_that_it_is_generated(corpus):
    assert "generated" in (corpus / "README.md").read_text().splitlines()[0]
    for path in [*corpus.glob("*/*.jsonl"), corpus / "sft" / "conversations.json"]:
        rows = lines(path) if path.suffix == ".jsonl" else read(path)
        assert all(row["source"] == "scenes (generated)" for row in rows)
    for path in [*corpus.glob("vqa/*/*.json"), *corpus.glob("captions_eval/*.json")]:
        assert "generated" in read(path)["info"]["description"]


def test_the_same_corpus_again_is_left_alone(corpus):
    before = (corpus / "scenes.json").stat().st_mtime_ns
    assert write(corpus, **SMALL) == read(corpus / "scenes.json")["counts"]
    assert (corpus / "scenes.json").stat().st_mtime_ns == before


def test_what_was_left_by_a_killed_run_does_not_stay(tmp_path):
    stale = tmp_path / ".corpus.partial" / "captions" / "stale.jsonl"
    stale.parent.mkdir(parents=True)
    stale.write_text("half a li")
    write(tmp_path / "corpus", worlds=20, test_worlds=2)
    assert not list(tmp_path.rglob("stale.jsonl"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"seed": 7}, "seed 0; expected 7"), ({"worlds": 3}, "worlds is 3"), ({"image_px": 8}, "image_px is 8")],
)
def test_what_cannot_be_done_is_one_sentence(corpus, change, sentence):
    with pytest.raises(UserError, match=sentence):
        write(corpus, **{**SMALL, **change})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path, **SMALL)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    (tmp_path / "scenes.json").write_text("[]")
    with pytest.raises(UserError, match=r"scenes\.json holds a list, no object"):
        write(tmp_path, **SMALL)
