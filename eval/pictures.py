"""Pictures as files: read with a sentence for the user when they are missing, told apart by content, not by name."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from pathlib import Path

from mm1.errors import UserError


@lru_cache(maxsize=2048)
def read(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        UserError: There is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the picture {path} is not readable ({error.strerror}); expected a file there") from None


@cache
def content(path: Path) -> str:
    """A name for what the file holds: two files with the same bytes are the same photograph."""
    return hashlib.sha256(read(path)).hexdigest()[:32]


def check(paths: list[Path], where: Path) -> None:
    """Refuse a task whose pictures are missing, before hours are spent on the others.

    Raises:
        UserError: How many are missing, the first of them, and the file that names them.
    """
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise UserError(
            f"{where} names {len(missing)} pictures that do not exist, the first is {missing[0]}; "
            f"expected every picture in its place"
        )
