"""Rows of whatever holds rows, told by its first bytes: a JSON object a line, a JSON list of objects, or parquet.

    {"a": 1}      [{"a": 1},       PAR1...
    {"a": 2}       {"a": 2}]

Lines and lists may be packed (:mod:`data_pipelines.sources.lines`). One row is held at a time, so a list of a million
conversations takes no more memory than one of ten.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_pipelines.sources import parquet
from data_pipelines.sources.lines import (
    CHUNK,
    FAULTS,
    LINE_BYTES,
    Damage,
    damage,
    is_packed,
    json_value,
    lines,
    starts,
    unpacked,
)
from data_pipelines.sources.lines import TOO_LONG as LINE_TOO_LONG

NO_OBJECT = Damage("line is no JSON object")
TOO_LONG = Damage(LINE_TOO_LONG)
NO_ROW = Damage("row is no JSON object")
NO_LIST = Damage("JSON list is cut short or damaged")
GAP = re.compile(r"[\s,]*")
OPENING = re.compile(r"\ufeff?\s*\[\s*")
DECODER = json.JSONDecoder()

Numbered = tuple[int, dict[str, Any] | Damage]


def rows(path: Path, start: int = 0, stop: int | None = None, number: int = 0) -> Iterator[Numbered]:
    """Number and value of the rows of a stretch that :func:`row_starts` tells, or why a row has no value.

    Args:
        path: The file.
        start: Where the first row stands: a byte, a row group.
        stop: Where the first row stands that is not wanted any more.
        number: How many rows stand before.

    Raises:
        OSError: It is not there.
    """
    match _kind(path):
        case "parquet":
            yield from parquet.parquet_rows(path, start, stop, number)
        case "list":
            yield from ((n, value) for _, n, value in _listed(path, start, stop, number))
        case _:
            for line in lines(path, start, stop, number):
                if isinstance(line.data, Damage):
                    yield line.number, line.data
                elif line.data.strip():
                    yield line.number, json_row(line.data)


def row_starts(path: Path, every: int) -> list[tuple[int, int]]:
    """Where rows stand after which about ``every`` others follow, and how many stand before."""
    match _kind(path):
        case "parquet":
            return parquet.groups(path, every)
        case "list":
            items = [] if is_packed(path) else _listed(path)
            return [(0, 0)] + [(at, n - 1) for at, n, _ in items if n > 1 and (n - 1) % every == 0]
    return starts(path, every)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(len(parquet.MAGIC)) == parquet.MAGIC or path.suffix == ".parquet":  # or what is left of one
            return "parquet"
        try:
            head = unpacked(file).read(CHUNK)
        except FAULTS:
            return "lines"  # reading tells what is wrong
    return "list" if OPENING.match(head.decode(errors="replace")) else "lines"


def json_row(line: bytes) -> dict[str, Any] | Damage:
    """The object that JSON spells, or that it spells none."""
    try:
        value = json_value(line)
    except ValueError:
        return NO_OBJECT
    return value if isinstance(value, dict) else NO_OBJECT


def _listed(
    path: Path, start: int = 0, stop: int | None = None, number: int = 0
) -> Iterator[tuple[int, int, dict[str, Any] | Damage]]:
    """Byte, number and value of the items of a JSON list, from a byte on where an item stands."""
    at = start
    with path.open("rb") as file:
        try:
            for value, skipped, size in _items(unpacked(file, start), OPENING if start == 0 else GAP):
                at, number = at + skipped, number + 1
                if stop is not None and at >= stop:
                    return
                yield at, number, value
                at += size
        except FAULTS as error:
            yield at, number + 1, damage(error)


def _items(stream: IO[bytes], opening: re.Pattern[str]) -> Iterator[tuple[dict[str, Any] | Damage, int, int]]:
    """The items with the bytes before each and of each, parsed from no more text than one of them needs."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # so that bytes can be counted
    text, at, gap = "", 0, opening
    while True:
        begin = found.end() if (found := gap.match(text, at)) else at
        if text.startswith("]", begin):
            return
        try:
            value, end = DECODER.raw_decode(text, begin)
        except RecursionError:
            yield NO_LIST, 0, 0
            return
        except ValueError:
            end = -1
        if 0 <= end < len(text):
            yield value if isinstance(value, dict) else NO_ROW, _bytes(text[at:begin]), _bytes(text[begin:end])
            at, gap = end, GAP
            continue
        text, at = text[at:], 0
        more = decoder.decode(stream.read(max(CHUNK, len(text))))
        if not more or len(text) > LINE_BYTES:
            yield TOO_LONG if more else NO_LIST, 0, 0
            return
        text += more


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
