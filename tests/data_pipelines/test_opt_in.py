"""Streams that are written only when asked for: answered questions, and runs of pictures with their texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.sources import Draft, Rejection, sources
from data_pipelines.sources.fewshot import BARE, PASSES, SIZES
from mm1.errors import UserError
from mm1.sample import Text
from tests.data_pipelines.conftest import json_lines, save


@pytest.fixture
def corpus(raw: Path) -> Path:
    """The raw corpus with DAQUAR's kind of questions: six about each of 20 pictures."""
    rows = []
    for n in range(20):
        name = "images/" + save(raw / f"vqa/rooms/images/r{n}.jpg", 5000 + n)
        rows += [
            {"question_id": 10 * n + k, "question": f"what {k} ?", "answer": f"a_{n}", "image": name} for k in range(6)
        ]
    json_lines(raw / "vqa/rooms/train.jsonl", rows)
    json_lines(raw / "vqa/rooms/test.jsonl", [])
    return raw


def drafts(corpus: Path, stream: str) -> tuple[list[Draft], list[Rejection]]:
    found = [draft for reader in sources(corpus, also=(stream,))[stream] for draft in reader.drafts()]
    return [d for d in found if isinstance(d, Draft)], [d for d in found if isinstance(d, Rejection)]


def test_they_are_read_only_when_asked_for(corpus: Path) -> None:
    assert not {"vqa", "fewshot"} & set(sources(corpus))
    assert {"vqa", "fewshot"} < set(sources(corpus, also=("vqa", "fewshot")))
    with pytest.raises(UserError, match=r"also names the stream 'sft'; expected some of fewshot, vqa"):
        sources(corpus, also=("sft",))


def test_a_document_has_some_questions_about_one_picture_and_only_answers_are_learned(corpus: Path) -> None:
    found, _ = drafts(corpus, "vqa")
    assert len(found) == 40
    first, second = found[:2]
    assert isinstance(first.items[0], Path)
    assert first.items[1:3] == (Text("Question: what 0 ? Short answer:", learn=False), Text("a 0\n", after_space=True))
    assert [len(first.items), len(second.items)] == [9, 5]
    assert first.group == second.group == "vqa/rooms/images/r0.jpg"


def test_vqa_v2_files_give_the_answer_of_most_people(corpus: Path) -> None:
    folder = corpus / "vqa/two"
    name = save(folder / "images/COCO_train2014_000000000007.jpg", 77)
    assert name
    question = {"question_id": 1, "image_id": 7, "question": "how many ?"}
    answers = [{"answer": answer} for answer in ("two", "2", "2")]
    (folder / "train_questions.json").write_text(json.dumps({"data_subtype": "train2014", "questions": [question]}))
    (folder / "train_annotations.json").write_text(
        json.dumps({"annotations": [{"question_id": 1, "answers": answers}]})
    )
    [found] = [draft for draft in drafts(corpus, "vqa")[0] if draft.id.startswith("two/")]
    assert [item.text for item in found.items[1:]] == ["Question: how many ? Short answer:", "2\n"]
    (folder / "train_annotations.json").write_text("{")
    assert [r.id for r in drafts(corpus, "vqa")[1]] == ["two/train_questions"]


def test_broken_rows_are_counted_and_nothing_else_is_lost(corpus: Path) -> None:
    path = corpus / "vqa/rooms/train.jsonl"
    broken = (
        b'{"image": "images/r0.jpg", "question": "", "answer": "x"}\n{"image": 3, "question": "q", "answer": "a"}\nno\n'
    )
    path.write_bytes(path.read_bytes() + broken)
    found, rejected = drafts(corpus, "vqa")
    assert len(found) == 40
    assert sorted(r.reason for r in rejected) == ["empty question or answer", "wrong fields", "wrong fields"]


def test_runs_hold_several_pictures_each_with_one_text_and_every_picture_once_a_pass(corpus: Path) -> None:
    found, _ = drafts(corpus, "fewshot")
    questions = [draft for draft in found if draft.id.startswith("vqa/rooms")]
    captions = [draft for draft in found if draft.id.startswith("captions/train")]
    assert len({draft.id for draft in found}) == len(found)
    for some, pictures in ((questions, 20), (captions, 24)):
        for number in range(PASSES):
            mine = [draft for draft in some if f":{number}#" in draft.id]
            shown = [item for draft in mine for item in draft.items if isinstance(item, Path)]
            bare = [draft for draft in mine if isinstance(draft.items[0], Text)]
            assert len(shown) == len(set(shown)) == pictures - BARE * len(bare)
        assert all(sum(isinstance(item, Path) for item in draft.items) <= max(SIZES) for draft in some)
        assert len({draft.items for draft in some}) == len(some)
    texts = [item for draft in captions for item in draft.items if isinstance(item, Text)]
    assert all(text.text.endswith("\n") and text.learn for text in texts)
    assert not any(d.id.startswith("captions/photos_dev") for d in found)
    assert 0 < sum(isinstance(draft.items[0], Text) for draft in found) < len(found) / 2
