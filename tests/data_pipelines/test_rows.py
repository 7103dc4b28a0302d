"""Rows are the same whatever holds them, stretches together are the file, and damage is told."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.sources import rows as rows_module
from data_pipelines.sources.lines import CUT, Damage
from data_pipelines.sources.rows import NO_LIST, NO_OBJECT, NO_ROW, row_starts, rows

ROWS = [{"id": n, "text": f"row {n} · ” \U0001f600 ]}}", "images": ["a", None] * (n % 3)} for n in range(500)]


def as_lines(path: Path) -> None:
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in ROWS) + b"\n")


def as_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, ensure_ascii=False))


def as_indented_list(path: Path) -> None:
    path.write_text("\ufeff\n" + json.dumps(ROWS, ensure_ascii=False, indent=2) + "\n")


def as_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(ROWS), path, row_group_size=70, write_page_checksum=True, compression="snappy"
    )


def as_packed_list(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))


KINDS = [as_lines, as_list, as_indented_list, as_parquet, as_packed_list]


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_rows_are_the_same_whatever_holds_them(
    tmp_path: Path, write: Callable[[Path], None], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", chunk)
    write(tmp_path / "a")
    assert [row for _, row in rows(tmp_path / "a")] == ROWS


@pytest.mark.parametrize("write", KINDS)
def test_stretches_together_are_the_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a")
    whole = list(rows(tmp_path / "a"))
    for every in (1, 100, 499, 10_000):
        begins = row_starts(tmp_path / "a", every)
        ends = [start for start, _ in begins[1:]] + [None]
        parts = [list(rows(tmp_path / "a", at, end, n)) for (at, n), end in zip(begins, ends, strict=True)]
        assert [row for part in parts for row in part] == whole
        assert all(parts)
        if write is not as_packed_list:
            assert max(map(len, parts)) <= max(every + 70, 100)


def read(path: Path, data: bytes) -> list[Any]:
    path.write_bytes(data)
    return [row for _, row in rows(path)]


def test_rows_that_are_none_are_told(tmp_path: Path) -> None:
    assert read(tmp_path / "a", b'{}\n[1]\n\xff\n3\n{"a": "\xff"}\n' + b"[" * 200_000) == [{}] + [NO_OBJECT] * 5
    assert read(tmp_path / "a", b'[{"a": 1}, 3, [], {"b": 2}]') == [{"a": 1}, NO_ROW, NO_ROW, {"b": 2}]
    assert read(tmp_path / "a", b'[{"a": 1}, {"b"') == [{"a": 1}, NO_LIST]
    assert read(tmp_path / "a", b'[{"a": 1}, 12') == [{"a": 1}, NO_LIST]
    assert read(tmp_path / "a", b"[" * 200_000) == [NO_LIST]
    assert read(tmp_path / "a", b"[]") == read(tmp_path / "a", b"") == []


def test_parquet_with_bytes_that_are_no_text_loses_those_rows_alone(tmp_path: Path) -> None:
    column = pyarrow.array([b"fine", b"\xff", b"fine too"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a")
    found = [row for _, row in rows(tmp_path / "a")]
    assert found == [{"text": "fine"}, Damage("row is not readable"), {"text": "fine too"}]


@pytest.mark.parametrize("write", KINDS)
def test_damage_is_told_and_no_row_is_made_up(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a")
    whole, generator = (tmp_path / "a").read_bytes(), random.Random(1)
    known, told = {json.dumps(row) for row in ROWS}, 0
    for number in range(80):
        data = bytearray(whole)
        if number % 2:
            del data[generator.randrange(len(data)) :]
        else:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        found = read(tmp_path / "a", bytes(data))
        row_starts(tmp_path / "a", 50)
        told += any(isinstance(row, Damage) for row in found)
        made_up = [row for row in found if isinstance(row, dict) and json.dumps(row) not in known]
        assert len(made_up) <= (write is not as_parquet)  # plain text has no checksum: a letter may become another
    assert told >= 40


def test_a_long_list_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    row = json.dumps({"text": "word " * 200})
    (tmp_path / "a").write_text("[" + ", ".join([row] * 30_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in rows(tmp_path / "a")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size > 30_000_000
    assert peak < 8_000_000


def test_a_parquet_cut_short_is_told(tmp_path: Path) -> None:
    as_parquet(tmp_path / "a")
    assert read(tmp_path / "a", (tmp_path / "a").read_bytes()[:-9]) == [Damage(CUT)]
