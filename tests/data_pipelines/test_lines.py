"""Lines come the same out of whatever they are packed in, and a damaged file tells what is wrong and nothing else."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_pipelines.sources import lines as packing
from data_pipelines.sources.lines import BOMB, CUT, TOO_LONG, Damage, lines, starts, stem

TEXT = b"".join(b"line %d %d\n" % (n, n * n) for n in range(3000)) + b"the last has no end"


def zipped(*parts: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._a.jsonl", b"resource fork")
        archive.mkdir("folder")
        for number, part in enumerate(parts):
            archive.writestr(f"folder/{number}.jsonl", part)
    return file.getvalue()


def framed(data: bytes) -> bytes:
    """Zstandard in two frames, as appended files have."""
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd": framed,
    "zip": zipped,
}


def read(path: Path, data: bytes) -> tuple[list[bytes], list[str]]:
    """Lines and reasons of a file of these bytes."""
    path.write_bytes(data)
    found = list(lines(path))
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    whole = [line.data for line in found if isinstance(line.data, bytes)]
    return whole, [line.data.reason for line in found if isinstance(line.data, Damage)]


@pytest.mark.parametrize("packer", PACKERS)
def test_lines_are_those_of_the_unpacked_file(tmp_path: Path, packer: str) -> None:
    whole, damage = read(tmp_path / "no_name_tells", PACKERS[packer](TEXT))
    assert b"".join(whole).rstrip(b"\n") == TEXT
    assert len(whole) == 3001
    assert damage == []


def test_the_files_of_a_zip_do_not_run_into_each_other(tmp_path: Path) -> None:
    assert read(tmp_path / "a", zipped(b"a\nb", b"", b"c\n")) == ([b"a\n", b"b\n", b"c\n"], [])
    assert read(tmp_path / "a", zipped()) == ([], [])
    assert read(tmp_path / "a", b"PK is no zip\n") == ([b"PK is no zip\n"], [])


@pytest.mark.parametrize("packer", ["gzip", "zstd", "zip"])
def test_a_file_that_was_cut_gives_the_lines_before_the_cut(tmp_path: Path, packer: str) -> None:
    packed = PACKERS[packer](TEXT)
    whole, damage = read(tmp_path / "a", packed[: len(packed) * 3 // 4])
    assert damage == [CUT]
    assert TEXT.startswith(b"".join(whole[:-1]))


@pytest.mark.parametrize("packer", ["gzip", "zstd", "zip"])
def test_no_damage_is_an_error(tmp_path: Path, packer: str) -> None:
    packed, generator = PACKERS[packer](TEXT), random.Random(0)
    told = 0
    for _ in range(150):
        mutated = bytearray(packed)
        for _ in range(generator.randint(1, 3)):
            mutated[generator.randrange(len(mutated))] ^= 1 << generator.randrange(8)
        told += bool(read(tmp_path / "a", bytes(mutated))[1])
    assert told > 50


@pytest.mark.parametrize("packer", ["gzip", "zstd", "zip"])
@pytest.mark.parametrize("line", [b"0" * 999 + b"\n", b"0"])
def test_a_bomb_stops_at_its_bound(tmp_path: Path, packer: str, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ALWAYS_BYTES", 1 << 16)
    monkeypatch.setattr(packing, "LINE_BYTES", 1 << 12)
    monkeypatch.setattr(packing, "SWELLING", 100)
    whole, damage = read(tmp_path / "a", PACKERS[packer](line * (30_000_000 // len(line))))
    assert damage[-1:] == [BOMB]
    assert sum(map(len, whole)) < 15_000_000


def test_a_line_that_is_too_long_is_skipped_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LINE_BYTES", 10)
    data = b"123456789\n" + b"1234567890\n" + b"x" * 5000 + b"\n" + b"after\n"
    assert read(tmp_path / "a", data) == ([b"123456789\n", b"after\n"], [TOO_LONG, TOO_LONG])


def test_stretches_together_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (TEXT, TEXT + b"\n", b"", b"\n\n", b"one"):
        path.write_bytes(data)
        for every in (1, 7, 3001, 9999):
            begins = starts(path, every)
            ends = [at for at, _ in begins[1:]] + [None]
            parts = [list(lines(path, at, stop, number)) for (at, number), stop in zip(begins, ends, strict=True)]
            assert [line for part in parts for line in part] == list(lines(path))
            assert all(len(part) <= every for part in parts)
    path.write_bytes(gzip.compress(TEXT))
    assert starts(path, 10) == [(0, 0)]


def test_a_file_is_called_the_same_packed_or_not() -> None:
    names = ("docs.jsonl", "docs.jsonl.gz", "docs.jsonl.zst", "folder/docs.jsonl.zip", "docs.zip")
    assert {stem(Path(name)) for name in names} == {"docs"}
    assert stem(Path("v1.0.jsonl.gz")) == "v1.0"
