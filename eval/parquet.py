"""Rows of parquet files, which half of all benchmarks are released as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from eval.files import check_row
from mm1.errors import UserError

ROWS = 64  # held at once; a row may hold pictures


def parquet_rows(path: Path, fields: Mapping[str, type | tuple[type, ...]]) -> Iterator[dict[str, Any]]:
    """Rows that all have ``fields``.

    Args:
        path: The file.
        fields: Names every row must have, with the types they may be of.

    Raises:
        UserError: The file is no parquet, or a row lacks a field or has another type there.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                number += 1
                check_row(row, fields, path, f"row {number}")
                yield row
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not readable as parquet ({str(error).splitlines()[0]:.80})") from None


def picture_bytes(value: Any) -> bytes | None:
    """The bytes of a picture in a cell, ``{"bytes", "path"}`` as Hugging Face writes it; None of an empty one."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) and data else None
