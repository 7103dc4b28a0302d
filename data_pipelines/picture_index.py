"""Pictures that img2dataset downloaded, found by their URL or key, whichever of its output formats they are in.

Tars, parquet files and folders are read once for an index, a table of

    hash of URL or key | kind | file | offset or row | size

in a SQLite file of the cache, so that finding one among a billion takes microseconds and no memory. A store whose files
changed gets a new index.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.cache import cache
from data_pipelines.picture_store import PictureStore
from data_pipelines.places import Remote, Stretch, expand, local
from data_pipelines.sources.base import Packed
from data_pipelines.sources.img2dataset import PICTURES, not_downloaded, picture_bytes, split
from data_pipelines.sources.lines import json_value
from data_pipelines.sources.parquet import cell, parquet_rows
from data_pipelines.sources.tars import tar_members
from mm1.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.sources.base import Place

URL, KEY = 0, 1
FORMAT = 1
ROWS = "pictures(hash BLOB, kind INTEGER, file INTEGER, name TEXT, at INTEGER, size INTEGER)"

Entry = tuple[bytes, int, str, int, int]
"""Hash, kind, name (of a file in a folder, a member of a tar, a column), and the two numbers of its place."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture in a column of a parquet file.

    Args:
        file: The file.
        column: The column.
        row: The row, from 0.
    """

    file: Path | Remote
    column: str
    row: int

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"{self.file.name}:{self.row + 1}"

    def read_bytes(self) -> bytes:
        """The bytes of its file.

        Raises:
            OSError: The parquet file cannot be read, or fetched.
        """
        try:
            return picture_bytes(cell(local(self.file), self.row, self.column)) or b""
        except UserError as error:  # for a picture one loss among others, to be counted
            raise OSError(str(error)) from error


class Img2datasetPictures(PictureStore):
    """The pictures of an img2dataset download, by URL or by key.

    Two URLs that are the same have the same picture; a key that two files use says nothing, and is not found.

    Args:
        files: Its ``*.tar`` files, its ``*.parquet`` files with pictures in them, or its folder. At an address they are
            fetched once to make the index, and of tars later only the stretches of pictures.
    """

    def __init__(self, files: str | Path | Sequence[str | Path]) -> None:
        self.given = [files] if isinstance(files, str | Path) else list(files)
        self._opened: tuple[int, sqlite3.Connection] | None = None
        self._files: list[Path | Remote] = []

    def find(self, name_or_url: str) -> Place | None:
        with closing(self._index().execute("SELECT * FROM pictures WHERE hash = ?", [_hash(name_or_url)])) as rows:
            found = list(rows)
        if not found or (found[0][1] == KEY and len(found) > 1):
            return None
        _, _, number, name, at, size = found[0]
        file = self._files[number]
        if file.name.endswith(".parquet"):
            return Cell(file, name, at)
        if file.name.endswith(".tar"):
            return Packed(file, name, at, size) if isinstance(file, Path) else Stretch(file, name, at, size)
        return file

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection: another process opens its own."""
        return {**self.__dict__, "_opened": None}

    def _index(self) -> sqlite3.Connection:
        """The index, built where there is none yet; each process has a connection of its own."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._files = [file for one in expand(self.given) for file in _below(one)]
            stamp = _stamp(self._files)
            path = cache().folder / "indexes" / f"{stamp}.sqlite"
            with cache().lock(f"index-{stamp[:8]}"):
                if not path.exists():
                    _build(self._files, path)
            uri = f"{path.as_uri()}?mode=ro&immutable=1"
            self._opened = (os.getpid(), sqlite3.connect(uri, uri=True, check_same_thread=False))
        return self._opened[1]


def _below(path: Path | Remote) -> Iterator[Path | Remote]:
    """The file, or all files of a folder that may hold pictures, in order."""
    if isinstance(path, Remote) or not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if split(name)[1] in (*PICTURES, "tar", "parquet"))


def _stamp(files: Sequence[Path | Remote]) -> str:
    stamp = hashlib.sha256(str(FORMAT).encode())
    for file in files:
        if isinstance(file, Path):
            about = file.stat()
            stamp.update(f"{file.absolute()} {about.st_size} {about.st_mtime_ns}\n".encode(errors="surrogatepass"))
        else:
            stamp.update(f"{file.address}\n".encode(errors="surrogatepass"))
    return stamp.hexdigest()[:40]


def _build(files: Sequence[Path | Remote], path: Path) -> None:
    """Write the index of some files, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".part-{os.getpid()}")
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as table:
        table.execute("PRAGMA journal_mode = OFF")
        table.execute("PRAGMA synchronous = OFF")
        table.execute(f"CREATE TABLE {ROWS}")
        for number, file in enumerate(files):
            entries = ((hashed, kind, number, name, at, size) for hashed, kind, name, at, size in _entries(file))
            table.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?)", entries)
        table.execute("CREATE INDEX hashes ON pictures (hash, kind)")
        table.commit()
    os.replace(part, path)


def _entries(file: Path | Remote) -> Iterator[Entry]:
    """What one file has; nothing where it cannot be read, so that its pictures are not found and counted."""
    kind = split(file.name)[1]
    if kind.endswith("tar"):
        yield from _in_tar(local(file))
    elif kind.endswith("parquet"):
        yield from _in_parquet(local(file))
    else:
        path = local(file)
        yield from _named(split(path.name)[0], _url_beside(path), path.name, 0, 0)


def _named(key: str, url: Any, name: str, at: int, size: int) -> Iterator[Entry]:
    yield _hash(key), KEY, name, at, size
    if isinstance(url, str) and url:
        yield _hash(url), URL, name, at, size


def _in_tar(path: Path) -> Iterator[Entry]:
    for key, members in groupby(tar_members(path)[0], lambda member: split(member.name)[0]):
        by_kind = {split(member.name)[1]: member for member in members}
        picture = next((by_kind[kind] for kind in PICTURES if kind in by_kind), None)
        if picture:
            url = _url(by_kind["json"].read_bytes()) if "json" in by_kind else None
            name = picture.name.encode(errors="replace").decode()
            yield from _named(key.rpartition("/")[2], url, name, picture.offset, picture.size)


def _in_parquet(path: Path) -> Iterator[Entry]:
    for number, row in parquet_rows(path):
        if isinstance(row, dict) and not not_downloaded(row):
            column = next((name for name in (*PICTURES, "image") if picture_bytes(row.get(name))), None)
            if column:
                yield from _named(str(row.get("key", "")), row.get("url"), column, number - 1, 0)


def _url_beside(picture: Path) -> Any:
    try:
        return _url(picture.with_name(f"{split(picture.name)[0]}.json").read_bytes())
    except OSError:
        return None


def _url(description: bytes) -> Any:
    try:
        row = json_value(description)
    except ValueError:
        return None
    return row.get("url") if isinstance(row, dict) else None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]
