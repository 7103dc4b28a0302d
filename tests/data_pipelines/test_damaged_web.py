"""Files of every kind, damaged at random: never an error, never a picture at another one's text, every loss told."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.picture_store import HashedPictures
from data_pipelines.sources import (
    MMC4,
    Answered,
    Conversations,
    Draft,
    HtmlRows,
    Messages,
    Mint1tPages,
    ParallelLists,
    Source,
    TextLines,
)
from mm1.data.image import PictureError, decode
from mm1.sample import Text
from tests.data_pipelines.conftest import photo
from tests.data_pipelines.web import jpeg, json_lines, packed, parquet, put, tar, tiff

DOCUMENTS, TIMES = 6, 60
SEEDS = {n: f"Words about {hashlib.sha256(bytes([n])).hexdigest()[:12]}." for n in range(2 * DOCUMENTS)}


def url(seed: int) -> str:
    return f"http://x/{hashlib.sha256(bytes([seed])).hexdigest()}.jpg"


def two(n: int) -> list[tuple[int, str]]:
    """The pictures of a document with the texts that follow them."""
    return [(seed, SEEDS[seed]) for seed in (2 * n, 2 * n + 1)]


def mmc4(n: int) -> dict[str, Any]:
    info = [
        {"image_name": f"{seed}.jpg", "raw_url": url(seed), "matched_text_index": k, "matched_sim": 0.3}
        for k, (seed, _) in enumerate(two(n))
    ]
    return {
        "text_list": [text for _, text in two(n)],
        "image_info": info,
        "similarity_matrix": [[0.3, 0.1], [0.1, 0.3]],
    }


def mmc4_base64(n: int) -> dict[str, Any]:
    row = mmc4(n)
    for info, (seed, _) in zip(row["image_info"], two(n), strict=True):
        info["image_base64"] = base64.b64encode(jpeg(seed)).decode()
    return row


def obelics(n: int) -> dict[str, Any]:
    images = [name for seed, _ in two(n) for name in (url(seed), None)]
    return {"images": images, "texts": [text for _, said in two(n) for text in (None, said)], "general_metadata": "{}"}


def mint(n: int) -> dict[str, Any]:
    return {**obelics(n), "images": [name for seed, _ in two(n) for name in (f"page_{seed}", None)]}


def page(n: int) -> dict[str, Any]:
    body = "".join(f'<img src="{url(seed)}"><p>{text}</p>' for seed, text in two(n))
    return {"url": f"http://y/{n}", "html": f"<html><body><article>{body}</article></body></html>"}


def llava(n: int) -> dict[str, Any]:
    turns = [
        {"from": who, "value": said} for _, text in two(n) for who, said in (("human", f"<image>{text}"), ("gpt", "A"))
    ]
    return {"id": n, "image": [url(seed) for seed, _ in two(n)], "conversations": turns}


def messages(n: int) -> dict[str, Any]:
    parts = [
        {"role": who, "content": said}
        for seed, text in two(n)
        for who, said in (
            ("user", [{"type": "image", "image": url(seed)}, {"type": "text", "text": text}]),
            ("assistant", "A"),
        )
    ]
    return {"messages": parts}


def answered(n: int) -> dict[str, Any]:
    texts = [{"user": f"<image>{text}", "assistant": "A"} for _, text in two(n)]
    return {"images": [{"bytes": jpeg(seed), "path": None} for seed, _ in two(n)], "texts": texts}


ROWS = range(DOCUMENTS)


def mint_tar() -> bytes:
    members = {f"{n}.json": json.dumps(mint(n)).encode() for n in ROWS}
    members |= {f"{n}.tiff": tiff([2 * n, 2 * n + 1]) for n in ROWS}
    return tar(dict(sorted(members.items())))


FILES: dict[str, Callable[[], bytes]] = {
    "mmc4.jsonl": lambda: json_lines(map(mmc4, ROWS)),
    "mmc4.zip": lambda: packed("a.zip", json_lines(map(mmc4, ROWS))),
    "base64.tar": lambda: tar({f"{n}.json": json.dumps(mmc4_base64(n)).encode() for n in ROWS}),
    "obelics.parquet": lambda: parquet(list(map(obelics, ROWS))),
    "mint.tar": mint_tar,
    "pages.jsonl.gz": lambda: packed("a.gz", json_lines(map(page, ROWS))),
    "pages.jsonl": lambda: json_lines(map(page, ROWS)),
    "llava.json": lambda: json.dumps([*map(llava, ROWS)]).encode(),
    "messages.jsonl": lambda: json_lines(map(messages, ROWS)),
    "finevision.parquet": lambda: parquet(list(map(answered, ROWS))),
    "text.jsonl.zst": lambda: packed("a.zst", json_lines({"text": SEEDS[n]} for n in ROWS)),
}


def source(path: Path, store: HashedPictures) -> Source:
    """The reader of a file."""
    match path.name.partition(".")[0]:
        case "mmc4":
            return MMC4(path, pictures=store, names="{raw_url}")
        case "base64":
            return MMC4(path)
        case "obelics":
            return ParallelLists(path, pictures=store)
        case "mint":
            return Mint1tPages(path)
        case "pages":
            return HtmlRows(path, pictures=store)
        case "llava":
            return Conversations(path, pictures=store)
        case "messages":
            return Messages(path, pictures=store)
        case "finevision":
            return Answered(path)
    return TextLines(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> HashedPictures:
    folder = tmp_path_factory.mktemp("store")
    for seed in SEEDS:
        put(folder / hashlib.sha256(url(seed).encode()).hexdigest(), jpeg(seed))
    return HashedPictures(folder)


@pytest.fixture(scope="module")
def seeds() -> dict[bytes, int]:
    """Which picture pixels show, of those from JPEG and those from TIFF."""
    jpegs = {decode(jpeg(seed)).tobytes(): seed for seed in SEEDS}
    return jpegs | {photo(seed).tobytes(): seed for seed in SEEDS}


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Some bits turned, bytes dropped, put in or made zero, or the end cut off."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 5))):
        at = generator.randrange(len(changed))
        match generator.randrange(6):
            case 0:
                del changed[at:]
                changed = changed or bytearray(b"x")
            case 1:
                del changed[at : at + generator.randrange(1, 40)]
                changed = changed or bytearray(b"x")
            case 2:
                changed[at:at] = generator.randbytes(generator.randrange(1, 9))
            case 3:
                stretch = min(generator.randrange(1, 300), len(changed) - at)
                changed[at : at + stretch] = bytes(stretch)
            case _:
                changed[at] ^= 1 << generator.randrange(8)
    return bytes(changed)


def check(draft: Draft, seeds: dict[bytes, int]) -> int:
    """How many pictures of a draft stand before their own text; none may stand before another one's."""
    right = 0
    for item, following in pairwise(draft.items):
        if isinstance(item, Text) or not isinstance(following, Text):
            continue
        try:
            seed = seeds.get(decode(item.read_bytes()).tobytes())
        except (PictureError, OSError):
            continue
        said = following.text.removeprefix("User: ")
        other = next((other for other, text in SEEDS.items() if said.startswith(text)), None)
        if seed is not None and other is not None:
            assert other == seed
            right += 1
    return right


@pytest.mark.parametrize("kind", FILES)
def test_whole_files_are_read_whole(tmp_path: Path, kind: str, store: HashedPictures, seeds: dict[bytes, int]) -> None:
    found = list(source(put(tmp_path / kind, FILES[kind]()), store).drafts())
    assert [type(one) for one in found] == [Draft] * DOCUMENTS
    assert sum(check(draft, seeds) for draft in found) == (0 if kind.startswith("text") else 2 * DOCUMENTS)


def hurt(folder: Path, kind: str, store: HashedPictures, seeds: dict[bytes, int], times: int) -> None:
    whole, generator, right = FILES[kind](), random.Random(kind), 0
    for _ in range(times):
        path = put(folder / kind, damaged(whole, generator))
        reader = source(path, store)
        found = list(reader.drafts())
        drafts = [one for one in found if isinstance(one, Draft)]
        right += sum(check(draft, seeds) for draft in drafts)
        rows = len(path.read_bytes().split()) and DOCUMENTS
        if kind.endswith(".jsonl"):  # nothing tells that lines are gone
            rows = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
        assert len(drafts) >= rows or len(drafts) < len(found)
        parts = [one for span in reader.spans(path, 2) for one in reader.drafts_in(path, span)]
        assert [one.id for one in parts if isinstance(one, Draft)] == [draft.id for draft in drafts]
    assert kind.startswith("text") or kind.endswith(("zip", "gz")) or right > times


@pytest.mark.parametrize("kind", FILES)
def test_damage_is_told_and_pairs_nothing_wrongly(
    tmp_path: Path, kind: str, store: HashedPictures, seeds: dict[bytes, int]
) -> None:
    hurt(tmp_path, kind, store, seeds, TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_much_damage(tmp_path: Path, kind: str, store: HashedPictures, seeds: dict[bytes, int]) -> None:
    hurt(tmp_path, kind, store, seeds, 1000)
