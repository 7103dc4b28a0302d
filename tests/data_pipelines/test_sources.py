"""What each kind of file becomes, and what it could not be used for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.sources import KINDS, Draft, Rejection, scored_pictures, sources
from data_pipelines.sources.text import DOCUMENT_CHARACTERS
from mm1.errors import UserError
from mm1.sample import Text

Writers = dict[str, Callable[..., Any]]


def read(corpus: Path, stream: str, **options: int) -> tuple[list[Draft], dict[str, list[str]]]:
    """Drafts, and ids by reason, of one stream."""
    drafts, rejected = [], {}
    for reader in sources(corpus, **options)[stream]:
        for found in reader.drafts():
            if isinstance(found, Rejection):
                rejected.setdefault(found.reason, []).append(found.id)
            else:
                drafts.append(found)
    return drafts, rejected


def test_every_kind_finds_its_files(raw: Path) -> None:
    (raw / "captions" / "pairs.tar").touch()
    found = sources(raw)
    assert list(found) == ["captions", "interleaved", "text", "sft"]
    assert sum(len(readers) for readers in found.values()) == sum(not kind.opt_in for kind in KINDS)
    assert sources(raw / "captions" / "images") == {}


def test_ids_are_unique_and_documents_about_a_picture_share_a_group(raw: Path) -> None:
    for stream in sources(raw):
        drafts, _ = read(raw, stream, captions_per_image=2)
        assert len({draft.id for draft in drafts}) == len(drafts)
    captions, _ = read(raw, "captions", captions_per_image=2)
    assert len(captions) == 48
    assert len({draft.group for draft in captions}) == 24
    assert {draft.group for draft in captions} == {f"captions/images/c{n}.jpg" for n in range(24)}


def test_one_caption_of_each_picture_chosen_by_hash(raw: Path) -> None:
    once, _ = read(raw, "captions")
    assert len(once) == 24
    assert once == read(raw, "captions")[0]
    assert {draft.items[1].text.split()[0] for draft in once} == {"caption", "again"}
    assert set(once) < set(read(raw, "captions", captions_per_image=9)[0])


def test_files_held_out_by_name_are_counted_by_row(raw: Path) -> None:
    _, rejected = read(raw, "captions")
    assert {reason: len(ids) for reason, ids in rejected.items()} == {"file held out by its name": 3}


def test_bad_caption_rows_are_counted_by_reason(raw: Path, writers: Writers) -> None:
    rows = [
        b'{"image": "a.jpg", "captions": ["cut',
        b"[1]",
        b"\xff\xfe",
        {"image": "a.jpg", "captions": "no list"},
        {"captions": ["no picture"]},
        {"image": "../../outside.jpg", "captions": ["climbs out"]},
        {"image": "a\0.jpg", "captions": ["no name"]},
        {"image": "a.jpg", "captions": []},
        {"image": "a.jpg", "captions": [" ", "fine"]},
        b"",
        b'{"image": "a.jpg", "captions": ["half \\ud83d a pair"]}',
    ]
    writers["json_lines"](raw / "captions/train.jsonl", rows)
    drafts, rejected = read(raw, "captions")
    rejected.pop("file held out by its name")
    assert [draft.items[1] for draft in drafts] == [Text("fine")]
    assert rejected == {
        "line is no JSON object": ["train:1", "train:2", "train:3"],
        "wrong fields": ["train:4", "train:5", "train:6", "train:7"],
        "empty caption": ["train:8#0", "train:9#0"],
        "text is not Unicode": ["train:11#0"],
    }


def test_interleaved_documents_keep_their_order(raw: Path) -> None:
    draft = read(raw, "interleaved")[0][0]
    folder = raw / "interleaved/images"
    first, *rest = draft.items
    assert (first, rest[0], rest[1]) == (
        Text("Document 0 begins."),
        folder / "i0-0.jpg",
        Text("Figure of i0-0.jpg. More."),
    )
    assert draft.loose
    assert draft.group == "doc0"


def test_bad_documents_are_counted_by_reason(raw: Path, writers: Writers) -> None:
    rows = [
        {"id": 1},
        {"items": [{"type": "video"}]},
        {"items": [{"type": "text", "text": 3}]},
        {"items": []},
        {"items": [{"type": "text", "text": " \n"}]},
        {"items": [{"type": "text", "text": "fine"}]},
    ]
    writers["json_lines"](raw / "interleaved/docs.jsonl", rows)
    drafts, rejected = read(raw, "interleaved")
    assert [draft.items for draft in drafts] == [(Text("fine"),)]
    assert rejected == {
        "wrong fields": ["docs:1", "docs:2", "docs:3"],
        "empty document": ["docs:4", "docs:5"],
    }


def test_plain_text_is_cut_at_blank_lines_into_bounded_documents(raw: Path) -> None:
    paragraphs = [f"Paragraph {n}: " + "word " * (n * 40) for n in range(60)]
    (raw / "text/book.txt").write_bytes("\r\n\r\n \r\n".join(paragraphs).encode() + b"\n\nbad \xff bytes\n\nthe end")
    drafts, rejected = read(raw, "text")
    texts = [draft.items[0].text for draft in drafts if draft.id.startswith("book")]
    whole = "\n\n".join(texts).split("\n\n")
    assert whole == [*paragraphs, "the end"]
    assert all(len(text) <= DOCUMENT_CHARACTERS or "\n\n" not in text for text in texts)
    assert len(texts) > 5
    assert rejected == {"text is not UTF-8": ["book:180"]}


def turns(*values: str, image: Any = None) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
    return {"id": "x", "conversations": said, **({"image": image} if image else {})}


def conversations(raw: Path, *rows: Any) -> tuple[list[Draft], dict[str, list[str]]]:
    (raw / "sft/turns.json").write_text(json.dumps(rows))
    return read(raw, "sft")


@pytest.mark.parametrize("asked", ["<image>\nWhat is it?", "What is it?\n<image>", "What is it?"])
def test_a_picture_at_the_edge_of_a_turn_opens_it(raw: Path, asked: str) -> None:
    drafts, _ = conversations(raw, turns(asked, "A blob.", "Sure?", "Yes.", image="captions/images/c0.jpg"))
    question, answer = Text("User: What is it?\nAssistant:", learn=False), Text("A blob.", end=True, after_space=True)
    assert drafts[0].items[:3] == (raw / "captions/images/c0.jpg", question, answer)
    assert drafts[0].items[3:] == (
        Text("User: Sure?\nAssistant:", learn=False),
        Text("Yes.", end=True, after_space=True),
    )


def test_a_picture_inside_a_turn_stands_at_its_place(raw: Path) -> None:
    row = turns(
        "Is <image> or <image> larger?", "The first.", image=["captions/images/c0.jpg", "captions/images/c1.jpg"]
    )
    items = conversations(raw, row)[0][0].items
    assert [item.name if isinstance(item, Path) else item.text for item in items] == [
        "User: Is ",
        "c0.jpg",
        " or ",
        "c1.jpg",
        " larger?\nAssistant:",
        "The first.",
    ]
    assert [item.learn for item in items if isinstance(item, Text)] == [False, False, False, True]


def test_bad_conversations_are_counted_by_reason(raw: Path) -> None:
    picture = "captions/images/c0.jpg"
    drafts, rejected = conversations(
        raw,
        turns("Hi", "Hello."),
        turns("No answer"),
        turns("Hi", " "),
        turns("<image> <image>", "two markers", image=picture),
        {"conversations": [{"from": "gpt", "value": "first"}, {"from": "human", "value": "?"}]},
        "no row",
        turns("<image>", "nothing asked", image=picture),
        turns("Whose number is that?", "No picture's.", image=3),
    )
    assert len(drafts) == 2
    assert rejected == {
        "wrong fields": ["turns:8"],
        "turns are not in order": ["turns:2", "turns:5"],
        "row is no JSON object": ["turns:6"],
        "empty turn": ["turns:3"],
        "pictures and <image> markers do not match": ["turns:4"],
    }
    (raw / "sft/turns.json").write_text("{")
    assert read(raw, "sft") == ([], {"line is no JSON object": ["turns:1"]})


def test_scored_pictures_are_those_of_every_scored_set(raw: Path, writers: Writers) -> None:
    vqa = raw / "vqa/v2"
    vqa.mkdir(parents=True)
    questions = {"data_subtype": "val2014", "questions": [{"image_id": 7}, {"image_id": 7}]}
    for name in ("test_questions.json", "questions.json", "train_questions.json"):
        number = {"test_questions.json": 7, "questions.json": 8, "train_questions.json": 9}[name]
        questions = {"data_subtype": "val2014", "questions": [{"image_id": number}, {"image_id": number}]}
        (vqa / name).write_text(json.dumps(questions))
    writers["json_lines"](raw / "vqa/daquar/test.jsonl", [{"image": "images/d.jpg"}])
    writers["json_lines"](raw / "vqa/daquar/train.jsonl", [{"image": "images/t.jpg"}])
    writers["json_lines"](raw / "icl/test.jsonl", [{"items": [{"type": "image", "image": "i.jpg"}, {"text": "x"}]}])
    assert {str(path.relative_to(raw)) for path in scored_pictures(raw)} == {
        "captions_eval/images/e0.jpg",
        "vqa/v2/images/COCO_val2014_000000000007.jpg",
        "vqa/v2/images/COCO_val2014_000000000008.jpg",
        "vqa/daquar/images/d.jpg",
        "icl/i.jpg",
    }


def test_a_scored_set_that_cannot_be_read_stops_everything(raw: Path) -> None:
    (raw / "captions_eval/photos.json").write_text("{}")
    with pytest.raises(UserError, match=r"photos\.json has not the fields of a scored set"):
        scored_pictures(raw)
    (raw / "captions_eval/photos.json").unlink()
    (raw / "vqa/mini").mkdir(parents=True)
    questions = {"data_subtype": "val2014", "questions": [{"image_id": "seven"}]}
    (raw / "vqa/mini/questions.json").write_text(json.dumps(questions))
    with pytest.raises(UserError, match=r"questions\.json has not the fields of a scored set"):
        scored_pictures(raw)
