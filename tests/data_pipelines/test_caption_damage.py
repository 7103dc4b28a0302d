"""Whatever byte of a file of captions is changed, wherever it is cut: nothing crashes, nothing is paired wrongly.

Pictures and captions here are one letter eight times, so that a byte that changes inside of one leaves no doubt which
it was, and each document can be asked whether its picture and its caption are of one letter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.picture_store import NamedPictures
from data_pipelines.sources import CaptionParquet, CaptionTable, CaptionTars, CaptionTsv, Draft, Source

LETTERS = "ABCDEF"


def row(letter: str) -> dict[str, Any]:
    return {"key": letter * 8, "url": f"{letter * 8}.jpg", "caption": letter * 8}


def tar(path: Path) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for number, letter in enumerate(LETTERS):
            members = {"jpg": letter.encode() * 8, "txt": letter * 8, "json": row(letter)}
            writer.write({"__key__": letter * 8, **{kind: members[kind] for kind in list(members)[: 3 - number % 2]}})


def parquet(path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row(letter), "jpg": letter.encode() * 8} for letter in LETTERS])
    pyarrow.parquet.write_table(table, path, row_group_size=2, write_page_checksum=True)


def tsv(path: Path) -> None:
    path.write_text("".join(f"{row(letter)['caption']}\t{row(letter)['url']}\n" for letter in LETTERS))


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row(letter)) + "\n" for letter in LETTERS))


def with_store(kind: Callable[..., Source]) -> Callable[[Path], Source]:
    return lambda path: kind(path, pictures=NamedPictures(path.parent / "images"))


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Source]]] = {
    "a.tar": (tar, CaptionTars),
    "a.parquet": (parquet, CaptionParquet),
    "a.tsv": (tsv, with_store(CaptionTsv)),
    "a.jsonl": (lines, with_store(CaptionTable)),
}
MUTATIONS = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
)


def mutated(data: bytes, how: str, where: float, bits: int) -> bytes:
    at = min(int(where * len(data)), len(data) - 1)
    return data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def letter(data: bytes) -> str | None:
    """Which letter it was before a byte of it changed."""
    best, times = Counter(data.decode(errors="replace")).most_common(1)[0] if data else ("", 0)
    return best if times > 5 else None


def check(source: Source) -> tuple[int, int]:
    """Documents and losses; the picture and the caption of each document have one letter."""
    found = list(source.drafts())
    drafts = [one for one in found if isinstance(one, Draft)]
    for draft in drafts:
        pair = letter(draft.pictures[0].read_bytes()), letter(draft.text.encode())
        assert None in pair or pair[0] == pair[1], "a picture with another's caption"
    losses = len(found) - len(drafts) + sum(len(draft.lost) for draft in drafts)
    return len(drafts), losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("damage")
    (made / "images").mkdir()
    for one in LETTERS:
        (made / "images" / row(one)["url"]).write_text(one * 8)
    for name, (write, _) in KINDS.items():
        write(made / name)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_lose_nothing(folder: Path, name: str) -> None:
    assert check(KINDS[name][1](folder / name)) == (len(LETTERS), 0)


@pytest.mark.parametrize("name", KINDS)
@given(mutation=MUTATIONS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_counted_and_pairs_nothing_wrongly(folder: Path, name: str, mutation: tuple[str, float, int]) -> None:
    path = folder / f"damaged-{name}"
    path.write_bytes(mutated((folder / name).read_bytes(), *mutation))
    documents, losses = check(KINDS[name][1](path))
    ends_at_a_line = mutation[0] == "cut" and not name.endswith(("tar", "parquet"))
    assert documents == len(LETTERS) or losses or ends_at_a_line
