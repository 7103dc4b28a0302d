"""Rows of Apache Parquet files, a row group after the other: the only file here that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_pipelines.sources.lines import CUT, Damage

MAGIC = b"PAR1"
BATCH_ROWS = 64  # held at once; rows with pictures in them are some megabytes each
NO_VALUE = Damage("row is not readable")
FAULTS = (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError)


def groups(path: Path, rows: int) -> list[tuple[int, int]]:
    """Row groups, and how many rows stand before, that begin stretches of at least ``rows`` rows."""
    try:
        with _opened(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except FAULTS:
        return [(0, 0)]  # reading tells what is wrong
    found, before, last = [(0, 0)], 0, 0
    for group, size in enumerate(sizes):
        if before - last >= rows:
            found.append((group, before))
            last = before
        before += size
    return found


def parquet_rows(
    path: Path, start: int = 0, stop: int | None = None, number: int = 0
) -> Iterator[tuple[int, dict[str, Any] | Damage]]:
    """Number and columns of the rows of the groups ``start`` to before ``stop``, and what was wrong with them.

    Of a damaged group what stands before the damage is used, and the groups after it.

    Args:
        path: The file.
        start: The first row group.
        stop: The first that is not wanted any more.
        number: How many rows stand before.
    """
    try:
        file = _opened(path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except FAULTS:
        yield number + 1, Damage(CUT)
        return
    with file:
        for group, size in list(enumerate(sizes))[start:stop]:
            read = 0
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                    for row in _rows(batch):
                        read += 1
                        yield number + read, row
            except FAULTS:
                read = -1
            number += size
            if read != size:
                yield number, Damage(CUT)
        if sum(sizes) != file.metadata.num_rows and stop is None:
            yield number + 1, Damage(CUT)


def cell(path: Path, row: int, column: str) -> Any:
    """One cell; that of the next row of its group costs nothing more.

    Args:
        path: The file.
        row: Its row in the file, from 0.
        column: Its column.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with _opened(path) as file:
            group = 0
            while row >= (size := file.metadata.row_group(group).num_rows):
                row, group = row - size, group + 1
        return _column(path, group, column)[row].as_py()
    except FAULTS as error:
        raise OSError(f"{path} cannot be read: {error}") from None


@lru_cache(maxsize=2)
def _column(path: Path, group: int, column: str) -> pyarrow.ChunkedArray:
    with _opened(path) as file:
        return file.read_row_group(group, [column])[column]


def _opened(path: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _rows(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | Damage]:
    try:
        return batch.to_pylist()
    except FAULTS:  # text that is no UTF-8, a date that no calendar has
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(batch: pyarrow.RecordBatch) -> dict[str, Any] | Damage:
    try:
        return batch.to_pylist()[0]
    except FAULTS:
        return NO_VALUE
