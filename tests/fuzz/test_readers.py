"""Damaged raw files: no reader crashes, no picture comes with another document's text, and every loss is counted.

A sample of the full run; all of it is ``pytest -m slow tests/fuzz``, with ``MM1_FUZZ`` files shared out over the kinds.
What no reader can know is left out: rows that a cut makes whole anew, names that were wrong in the first place.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

from data_pipelines.picture_store import HashedPictures, NamedPictures
from data_pipelines.sources import (
    MMC4,
    Answered,
    CaptionParquet,
    Captions,
    CaptionTable,
    CaptionTars,
    CaptionTsv,
    Conversations,
    Draft,
    HtmlRows,
    Interleaved,
    Messages,
    Mint1tPages,
    ParallelLists,
    PlainText,
    Rejection,
    Source,
    TextLines,
)
from data_pipelines.steps import Pictures
from mm1.data.image import PictureError
from mm1.errors import UserError
from tests.data_pipelines.web import json_lines, packed, parquet, tar
from tests.fuzz.damage import (
    BYTES,
    FULL,
    LINES,
    NUMBERS,
    TAR,
    Damage,
    cut,
    lines_moved,
    members_moved,
    name,
    picture,
    word,
    wrong_pairs,
)

SAMPLE = 24  # of each kind in a quick run


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        data: A whole one.
        source: Its reader.
        damages: Ways to damage it.
        paired: Whether each document has a number of its own, which all of it must have.
        counted: Whether a loss can be told at all; of plain text none can.
    """

    data: Callable[[], bytes]
    source: Callable[[Path], Source]
    damages: tuple[Damage, ...]
    paired: bool = True
    counted: bool = True


def url(number: int) -> str:
    return f"https://x.org/{name(number)}"


def rows(row: Callable[[int], dict[str, Any]]) -> Callable[[], bytes]:
    return lambda: json_lines(map(row, NUMBERS))


def in_base64(number: int) -> str:
    return base64.b64encode(picture(number)).decode()


def mmc4(number: int, **about: Any) -> dict[str, Any]:
    shown = {"image_name": name(number), "raw_url": url(number), "matched_text_index": 0, "matched_sim": 0.3, **about}
    return {"url": url(number), "text_list": [word(number)], "image_info": [shown], "similarity_matrix": [[0.3]]}


def members(kinds: Callable[[int], dict[str, bytes]]) -> Callable[[], bytes]:
    return lambda: tar({f"{name(n)[:-4]}.{kind}": data for n in NUMBERS for kind, data in kinds(n).items()})


def named(kind: Callable[..., Source]) -> Callable[[Path], Source]:
    return lambda path: kind(path, pictures=NamedPictures(path.parent, template="{base}"))


def hashed(kind: Callable[..., Source]) -> Callable[[Path], Source]:
    return lambda path: kind(path, pictures=HashedPictures(path.parent / "hashed"))


def turns(number: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": word(number)}]


KINDS: dict[str, Kind] = {
    "img2dataset.tar": Kind(
        members(lambda n: {"png": picture(n), "txt": word(n).encode(), "json": b'{"status": "success"}'}),
        CaptionTars,
        TAR,
    ),
    "mmc4.tar": Kind(members(lambda n: {"json": json_lines([mmc4(n, image_base64=in_base64(n))])}), MMC4, TAR),
    "mint1t.tar": Kind(
        members(
            lambda n: {
                "json": json_lines([{"images": ["page_0", None], "texts": [None, word(n)]}]),
                "tiff": picture(n, "TIFF"),
            }
        ),
        Mint1tPages,
        TAR,
    ),
    "captions.jsonl": Kind(rows(lambda n: {"image": name(n), "captions": [word(n)]}), Captions, LINES),
    "laion.jsonl": Kind(rows(lambda n: {"URL": url(n), "TEXT": word(n)}), named(CaptionTable), LINES),
    "cc3m.tsv": Kind(lambda: b"".join(f"{word(n)}\t{url(n)}\n".encode() for n in NUMBERS), named(CaptionTsv), LINES),
    "img2dataset.parquet": Kind(
        lambda: parquet([{"png": picture(n), "caption": word(n)} for n in NUMBERS]), CaptionParquet, BYTES
    ),
    "coyo.parquet": Kind(
        lambda: parquet([{"url": url(n), "text": word(n)} for n in NUMBERS]), named(CaptionTable), BYTES
    ),
    "interleaved.jsonl": Kind(
        rows(lambda n: {"items": [{"type": "image", "image": name(n)}, {"type": "text", "text": word(n)}] * 2}),
        Interleaved,
        LINES,
    ),
    "mmc4.jsonl": Kind(rows(mmc4), named(MMC4), LINES),
    "obelics.parquet": Kind(
        lambda: parquet([{"images": [url(n), None], "texts": [None, word(n)]} for n in NUMBERS]),
        hashed(ParallelLists),
        BYTES,
    ),
    "llava.json": Kind(
        lambda: b"[" + b",\n".join(json_lines([{"image": name(n), "conversations": turns(n)}]) for n in NUMBERS) + b"]",
        Conversations,
        BYTES,
    ),
    "messages.jsonl": Kind(
        rows(
            lambda n: {
                "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": word(n)}],
                "images": [in_base64(n)],
            }
        ),
        Messages,
        LINES,
    ),
    "finevision.parquet": Kind(
        lambda: parquet(
            [
                {"images": [{"bytes": picture(n), "path": None}], "texts": [{"user": "Which?", "assistant": word(n)}]}
                for n in NUMBERS
            ]
        ),
        Answered,
        BYTES,
    ),
    "html.jsonl": Kind(
        rows(lambda n: {"url": "https://x.org/p", "html": f"<p>{'A page. ' * 20}{word(n)}</p><img src='{name(n)}'>"}),
        named(HtmlRows),
        LINES,
    ),
    "text.jsonl": Kind(rows(lambda n: {"text": f"{word(n)} and {word(n)}"}), TextLines, LINES),
    "text.jsonl.gz": Kind(
        lambda: packed("a.gz", json_lines({"text": word(n)} for n in NUMBERS)), TextLines, BYTES, False
    ),
    "text.jsonl.zst": Kind(
        lambda: packed("a.zst", json_lines({"text": word(n)} for n in NUMBERS)), TextLines, BYTES, False
    ),
    "text.jsonl.zip": Kind(
        lambda: packed("a.zip", json_lines({"text": word(n)} for n in NUMBERS)), TextLines, BYTES, False
    ),
    "book.txt": Kind(lambda: "\n\n".join(map(word, NUMBERS)).encode(), PlainText, BYTES, False, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files are damaged, with the pictures that rows name."""
    made = tmp_path_factory.mktemp("fuzz")
    (made / "hashed").mkdir()
    for number in NUMBERS:
        (made / name(number)).write_bytes(picture(number))
        (made / "hashed" / hashlib.sha256(url(number).encode()).hexdigest()).write_bytes(picture(number))
    return made


def outcome(kind: Kind, path: Path) -> tuple[set[int], int]:
    """Numbers of the documents that came whole, and how many losses were told."""
    whole: set[int] = set()
    told = 0
    try:
        for found in kind.source(path).drafts():
            if isinstance(found, Rejection):
                told += 1
                continue
            pixels, lost = shown(found)
            told += lost + len(found.lost)
            assert not kind.paired or not wrong_pairs(found.text, pixels), found
            numbers = {number for number in NUMBERS if word(number) in found.text}
            whole |= numbers if not lost and len(pixels) == len(found.pictures) else set()
            told += not numbers  # its text is another one now, for anybody to see
    except UserError:
        told += 1
    return whole, told


def shown(draft: Draft) -> tuple[list[numpy.ndarray], int]:
    """Pixels of the pictures of a document, and how many cannot be read."""
    pictures, pixels = Pictures(), []
    for place in draft.pictures:
        try:
            pixels.append(numpy.asarray(pictures.pixels(place)))
        except PictureError:
            continue
    return pixels, len(draft.pictures) - len(pixels)


def throw(file: str, folder: Path, times: int) -> None:
    kind = KINDS[file]
    whole = kind.data()
    path = folder / file
    path.write_bytes(whole)
    assert outcome(kind, path) == (set(NUMBERS), 0)
    for seed in range(times):
        chance = random.Random(f"{file} {seed}")
        damage = chance.choice(kind.damages)
        damaged = damage(whole, chance)
        path.write_bytes(damaged)
        came, told = outcome(kind, path)
        at_end = damaged.endswith(b"\n") or whole[len(damaged) :].startswith(b"\n")
        shorter = damage in (lines_moved, members_moved) or (damage is cut and at_end)
        assert came == set(NUMBERS) or told or shorter or not kind.counted, f"{seed}, {damage.__name__}: lost silently"


@pytest.mark.parametrize("file", KINDS)
def test_damaged_files(file: str, folder: Path) -> None:
    throw(file, folder, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("file", KINDS)
def test_many_damaged_files(file: str, folder: Path) -> None:
    throw(file, folder, -(-FULL // len(KINDS)))
