"""GQA (Hudson and Manning 2019, arXiv 1902.09506): the balanced questions, by exact match."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_ids, check_row
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError

FILES = r"(train|val|testdev|test)_balanced_questions\.json"
FOLDERS = "images gqa/images"
BINARY = ("verify", "logical")  # structures whose answers are yes or no


def find(data: Data) -> list[Offer]:
    """``gqa/testdev``, ``gqa/val`` and ``gqa/test``, whose answers are not published."""
    return [Offer(f"gqa/{split}", partial(_task, data, split)) for split in data.splits(FILES) if split != "train"]


def _task(data: Data, split: str) -> Task:
    files = data.splits(FILES)
    told = (
        () if "train" in files else ("no train part of GQA: demonstrations are scored questions, the query excluded",)
    )
    return Task(
        f"gqa/{split}",
        "vqa",
        _read(data, files[split], closed=split == "test"),
        _read(data, files["train"], closed=False) if "train" in files else (),
        told,
        metric="none" if split == "test" else "exact_match",
        answer_field="prediction",
        sources=tuple(source(files[name]) for name in (split, "train") if name in files),
    )


def _read(data: Data, file: Path, closed: bool) -> tuple[Query, ...]:
    asked = []
    fields = {"imageId": str, "question": str} | ({} if closed else {"answer": str})
    for id, row in entries(file):
        check_row(row, fields, file, f"question {id}")
        asked.append((id, row["imageId"], row["question"], row.get("answer"), _groups(row)))
    check_ids((id for id, *_ in asked), file)
    pictures = data.placed(("gqa",), file, [(f"{image}.jpg",) for _, image, *_ in asked], FOLDERS)
    return tuple(
        Query(
            id,
            picture,
            question,
            () if answer is None else (answer,),
            answer or "",
            groups=groups,
            about={"result": {"questionId": id}},
        )
        for (id, _, question, answer, groups), picture in zip(asked, pictures, strict=True)
    )


def _groups(row: dict[str, Any]) -> tuple[str, ...]:
    """Binary or open, as GQA's table has it, and the structure of the question."""
    types = row.get("types")
    structure = types.get("structural") if isinstance(types, dict) else None
    return ("binary" if structure in BINARY else "open", structure) if isinstance(structure, str) else ()


def entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Questions by id, one at a time: the train part as one object would take tens of gigabytes.

    Raises:
        UserError: The file is no JSON object.
    """
    try:
        text = file.read_text()
        decoder, at = json.JSONDecoder(), _past(text, 0, "{")
        while text[at] != "}":
            key, at = decoder.raw_decode(text, at)
            value, at = decoder.raw_decode(text, _past(text, _blank(text, at), ":"))
            yield key, value
            at = _blank(text, at)
            if text[at] == ",":
                at = _blank(text, at + 1)
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{file} is not readable as JSON ({error}); expected an object of GQA's questions by id"
        ) from None


def _past(text: str, at: int, mark: str) -> int:
    at = _blank(text, at)
    if text[at] != mark:
        raise ValueError(f"{text[at]!r} at {at} where {mark!r} should be")
    return _blank(text, at + 1)


def _blank(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
