"""Conversations in every shape that is about: who speaks, where pictures stand, and instructions that stay."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.cut import Limits, cut
from data_pipelines.places import Remote
from data_pipelines.sources import Answered, Conversations, Messages, Mix
from mm1 import template
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError
from mm1.sample import Image, Text
from tests.data_pipelines.web import jpeg, json_lines, packed, parquet, put, read, spelled, stretched

ASKED = Text("User: What is it?\nAssistant:", learn=False)
ANSWERED = Text("A blob.", end=True, after_space=True)
BRIEF = Text("System: Be brief.\n", learn=False)


def said(*turns: str, **fields: Any) -> dict[str, Any]:
    """A row: ``human: What is it?``, and so on."""
    parted = [turn.partition(": ") for turn in turns]
    return {"conversations": [{"from": who, "value": value} for who, _, value in parted], **fields}


def told(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": content} for who, content in turns], **fields}


def conversations(
    folder: Path, *rows: Any, kind: Any = Conversations, **settings: Any
) -> tuple[list[Any], dict[str, list[str]]]:
    put(folder / "a.jpg", jpeg(0))
    put(folder / "b.jpg", jpeg(1))
    return read(kind(put(folder / "rows.jsonl", json_lines(rows)), **settings))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.zst", "a.parquet"])
def test_llava_however_it_is_kept(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.jpg", jpeg(0))
    rows = [said("human: <image>\nWhat is it?", "gpt: A blob.", id=f"r{n}", image="a.jpg") for n in range(5)]
    data = (
        parquet(rows)
        if "parquet" in name
        else packed(
            name, json.dumps(rows).encode() if Path(name.removesuffix(".gz")).suffix == ".json" else json_lines(rows)
        )
    )
    source = Conversations(put(tmp_path / name, data))
    drafts, lost = read(source)
    assert [draft.id for draft in drafts] == [f"a:{n}" for n in range(1, 6)]
    assert drafts[0].items == (tmp_path / "a.jpg", ASKED, ANSWERED)
    assert lost == {}
    assert stretched(source, tmp_path / name, 2) == list(source.drafts())


@pytest.mark.parametrize(
    "row",
    [
        said("system: Be brief.", "human: <image>\nWhat is it?", "gpt: A blob.", image="a.jpg"),
        said("human: What is it?", "gpt: A blob.", image=["a.jpg"], system=" Be brief. "),
        said("user: What is it? <image>", "chatgpt: A blob.", images=["a.jpg"], system="Be brief."),
        said("human: What is it?", "bard: A blob.", image="a.jpg", tools="Be brief."),
    ],
)
def test_instructions_stand_before_pictures_and_are_not_learned(tmp_path: Path, row: dict[str, Any]) -> None:
    drafts, _ = conversations(tmp_path, row)
    assert drafts[0].items == (BRIEF, tmp_path / "a.jpg", ASKED, ANSWERED)


def test_instructions_open_every_piece_of_a_conversation_that_is_cut(out: Path) -> None:
    tokenizer = Tokenizer(find(out))
    turns = [item for n in range(6) for item in template.turn(f"Question {n}, and so on?", f"Answer {n}, at length.")]
    items = (template.system("Be brief."), Image(b"a"), *turns)
    pieces, lost = cut(items, tokenizer, Limits(200, 4, 4))
    assert lost == []
    assert len(pieces) > 1
    assert all(piece[:2] == items[:2] for piece in pieces)
    assert [item for piece in pieces for item in piece[2:]] == turns


def test_tools_are_read_and_calls_of_them_are_learned(tmp_path: Path) -> None:
    row = said("human: How warm?", 'function_call: {"place": 1}', "observation: 20", "gpt: Mild.")
    drafts, _ = conversations(tmp_path, row)
    assert [(item.text, item.learn, item.end) for item in drafts[0].items] == [
        ("User: How warm?\nAssistant:", False, False),
        ('{"place": 1}', True, True),
        ("Tool: 20\nAssistant:", False, False),
        ("Mild.", True, True),
    ]


def test_pictures_in_several_turns_and_inside_of_one(tmp_path: Path) -> None:
    row = said(
        "human: Is <image> or\n<image> larger?",
        "gpt: The first.",
        "human: <image> And this?",
        "gpt: No.",
        image=["a.jpg", "b.jpg", "a.jpg"],
    )
    drafts, _ = conversations(tmp_path, row)
    first, second = spelled(drafts[0])[:6], spelled(drafts[0])[6:]
    assert first == ["User: Is ", "<a.jpg>", " or ", "<b.jpg>", " larger?\nAssistant:", "The first."]
    assert second == ["<a.jpg>", "User: And this?\nAssistant:", "No."]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [
        said("human: <image> Hm?", "gpt: Yes.", video="a.mp4"),
        said("human: <image> <image>", "gpt: One picture.", image="a.jpg"),
        said("gpt: Hello.", "human: Hi"),
        said("human: Hi", "human: Hi", "gpt: Hello."),
        said("human: Hi", "gpt: Hello.", "system: Late.", "human: Hi", "gpt: Hello."),
        said("human: Hi", "gpt:  "),
        said("someone: Hi", "gpt: Hello."),
        said("human: Hi", "gpt: Hello.", image="../a.jpg"),
        said("human: Hi", "gpt: Hello.", image=[3]),
        said("human: Hi", "gpt: Hello.", image="file:///etc/passwd"),
        {"conversations": {}},
        {},
        said("system: Only this."),
    ]
    drafts, lost = conversations(tmp_path, *rows)
    assert [draft.id for draft in drafts] == ["rows:5"]
    assert lost == {
        "video is not read": ["rows:1"],
        "pictures and <image> markers do not match": ["rows:2"],
        "turns are not in order": ["rows:3", "rows:4", "rows:12", "rows:13"],
        "empty turn": ["rows:6"],
        "wrong fields": ["rows:7", "rows:8", "rows:9", "rows:10", "rows:11"],
    }


DATA_URL = "data:image/jpeg;base64," + base64.b64encode(jpeg(0)).decode()


@pytest.mark.parametrize(
    "value",
    [
        "a.jpg",
        DATA_URL,
        DATA_URL.partition(",")[2],
        {"path": "a.jpg"},
        {"bytes": None, "path": "a.jpg"},
        {"url": DATA_URL},
    ],
    ids=["path", "data URL", "base64", "path of an object", "parquet's path", "URL of an object"],
)
def test_messages_show_pictures_in_many_ways(tmp_path: Path, value: Any) -> None:
    text = ("user", "<image>What is it?")
    parts = ("user", [{"type": "image_url", "image_url": value}, {"type": "text", "text": "What is it?"}])
    rows = [
        told(("system", "Be brief."), text, ("assistant", "A blob."), images=[value]),
        told(("developer", [{"type": "text", "text": "Be brief."}]), parts, ("assistant", "A blob.")),
    ]
    drafts, lost = conversations(tmp_path, *rows, kind=Messages)
    assert lost == {}
    for draft in drafts:
        assert (draft.items[0], *draft.items[2:]) == (BRIEF, ASKED, ANSWERED)
        assert draft.pictures[0].read_bytes() == jpeg(0)


def test_messages_beside_their_pictures(tmp_path: Path) -> None:
    parts = (
        "user",
        [{"type": "text", "text": "Is"}, {"type": "image"}, {"type": "text", "text": "like"}, {"type": "image"}],
    )
    rows = [
        told(parts, ("assistant", "Yes."), images=["a.jpg", "http://x/b.jpg"]),
        told(("user", "<image> is text here"), ("assistant", "Yes.")),
        told(("user", [{"type": "image", "image": "a.jpg"}]), ("assistant", "Yes."), images=["b.jpg"]),
        told(("user", "Hi"), ("assistant", [{"type": "image", "image": "a.jpg"}])),
        told(("user", "Hi"), ("assistant", None)),
        told(("user", "Hi <image>"), ("assistant", "Yes."), images=["data:image/png;base64,!!"]),
        told(("user", [{"type": "input_audio"}]), ("assistant", "Yes.")),
        {"messages": "Hi"},
    ]
    drafts, lost = conversations(tmp_path, *rows, kind=Messages)
    assert spelled(drafts[0]) == ["User: Is ", "<a.jpg>", " like ", "<b.jpg>", "\nAssistant:", "Yes."]
    assert drafts[0].pictures == (tmp_path / "a.jpg", Remote("http://x/b.jpg"))
    assert lost == {
        "pictures and <image> markers do not match": ["rows:2"],
        "wrong fields": ["rows:3", "rows:4", "rows:5", "rows:7", "rows:8"],
        "picture is no base64": ["rows:6#0"],
    }


def test_questions_with_answers_as_in_finevision(tmp_path: Path) -> None:
    rows = [
        {
            "images": [{"bytes": jpeg(n), "path": None}],
            "texts": [
                {"user": "What is it?", "assistant": "A blob.", "source": "x"},
                {"user": "Sure?", "assistant": "Yes."},
            ],
            "relevance_ratings": [5, n],
            "source": "made_up",
        }
        for n in range(4)
    ]
    rows.append(
        {"images": [], "texts": [{"user": "Hi", "assistant": "Hello."}], "relevance_ratings": None, "source": "x"}
    )
    source = Answered(put(tmp_path / "train-00000-of-00001.parquet", parquet(rows)))
    drafts, lost = read(source)
    assert lost == {}
    assert drafts[2].items[1:3] == (ASKED, ANSWERED)
    assert drafts[2].pictures[0].read_bytes() == jpeg(2)
    assert drafts[2].about == {"relevance_ratings": [5, 2], "source": "made_up"}
    assert len({draft.group for draft in drafts}) == 5
    assert stretched(source, source.files()[0], 2) == list(source.drafts())
    for wrong in ({"texts": []}, {"texts": [{"user": "x"}]}, {"texts": "x"}):
        assert conversations(tmp_path, wrong, kind=Answered)[0] == []


def mix(folder: Path, *strategies: str) -> Path:
    listed = []
    for number, strategy in enumerate(strategies):
        rows = [said("human: Hi", f"gpt: {number} {n}") for n in range(10)]
        put(folder / f"part{number}.jsonl", json_lines(rows))
        listed.append({"json_path": f"part{number}.jsonl", "sampling_strategy": strategy})
    return put(folder / "mix.yaml", yaml.safe_dump({"datasets": listed}).encode())


def test_a_mix_takes_from_each_file_what_it_says(tmp_path: Path) -> None:
    path = mix(tmp_path, "all", "first:3", "end:20%", "random:4", "random:25%", "first:99")
    drafts, lost = read(Mix(path))
    taken = [[draft.items[1].text for draft in drafts if draft.items[1].text.startswith(f"{n} ")] for n in range(6)]
    assert [len(found) for found in taken] == [10, 3, 2, 4, 3, 10]
    assert taken[1] == ["1 0", "1 1", "1 2"]
    assert taken[2] == ["2 8", "2 9"]
    assert len(lost["row is not in the mix's sample"]) == 28
    source = Mix(path)
    assert read(source)[0] == read(pickle.loads(pickle.dumps(source)))[0] == drafts
    assert read(Mix(path, seed=1))[0] != drafts


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"[",
        b"datasets: 3",
        b"datasets: [{json_path: 3}]",
        b"datasets: [{json_path: a.json, sampling_strategy: some}]",
    ],
)
def test_a_mix_that_is_none_says_so(tmp_path: Path, given: bytes) -> None:
    with pytest.raises(UserError, match="expected datasets"):
        read(Mix(put(tmp_path / "mix.yaml", given)))
