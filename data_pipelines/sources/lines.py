"""Lines of files as they lie about: plain, gzip, Zstandard or zip, told by their first bytes and never by their names.

    docs_shard_7_v2.jsonl.zip  ->  1, b'{"text_list": ...'      number and bytes of each line, one at a time
                                   2, b'{"text_list": ...'
                                   Damage("file is cut short or damaged")

Nothing is ever held but a line, and a line has a bound, so that no file, whatever is packed in it, fills the memory.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

SUFFIXES = (".gz", ".zst", ".zip")
LINE_BYTES = 1 << 27  # a document with its pictures in base64 is some megabytes
SWELLING = 500  # how many times its file a text may be; real ones are 3 to 20 times as long
ALWAYS_BYTES = 1 << 28  # but so much may come of any file
CHUNK = 1 << 20
ZSTD_CHUNK = 1 << 10  # four bytes may stand for 128 KiB, so this much for 32 MiB

CUT = "file is cut short or damaged"
BOMB = f"file swells to more than {SWELLING} times its size"
TOO_LONG = f"line of more than {LINE_BYTES >> 20} MiB"
FAULTS = (  # what the four libraries raise for bytes that are not theirs
    *(OSError, EOFError, ValueError, RuntimeError, struct.error),
    *(zlib.error, zipfile.BadZipFile, zstandard.ZstdError),
)


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a line, or all that would have followed, could not be read.

    Args:
        reason: A few words, the same for all cases, to be counted.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Args:
        start: Its first byte in the file, unpacked if it was packed.
        number: Its number; the first is 1.
        data: Its bytes with the line end.
    """

    start: int
    number: int
    data: bytes | Damage


def stem(path: Path) -> str:
    """What a file is called without its ending, and without that of what packs it: ``a.jsonl.gz`` is ``a``."""
    return Path(path.stem if path.suffix in SUFFIXES else path.name).stem


def lines(path: Path, start: int = 0, stop: int | None = None, number: int = 0) -> Iterator[Line]:
    """The lines between two bytes of a file, and what was wrong with it, in order.

    Args:
        path: The file.
        start: Where a line begins.
        stop: Where the first line begins that is not wanted any more.
        number: How many lines stand before ``start``.

    Raises:
        OSError: It is not there.
    """
    at = start
    with path.open("rb") as file:
        try:
            for data in _bounded(unpacked(file, start)):
                if stop is not None and at >= stop:
                    return
                number += 1
                yield Line(at, number, data if isinstance(data, bytes) else Damage(TOO_LONG))
                at += len(data) if isinstance(data, bytes) else data
        except FAULTS as error:
            yield Line(at, number + 1, damage(error))


def starts(path: Path, every: int) -> list[tuple[int, int]]:
    """Byte and number of the lines before every ``every``-th line; only the beginning of a file that is packed."""
    found, at, number = [(0, 0)], 0, 0
    with path.open("rb") as file:
        if _magic(file):
            return found
        while data := file.readline(CHUNK):
            at += len(data)
            number += data.endswith(b"\n")
            if data.endswith(b"\n") and number % every == 0:
                found.append((at, number))
    return found[:-1] if len(found) > 1 and found[-1][0] == at else found


def json_value(data: bytes | str) -> Any:
    """A JSON value.

    Raises:
        ValueError: It is none; also where it is nested too deeply to be told.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Bomb(ValueError):
    """More came of a file than could be right."""


def damage(error: BaseException) -> Damage:
    """What one of :data:`FAULTS` says of the file."""
    return Damage(BOMB if isinstance(error, Bomb) else CUT)


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, and so can only be read from its beginning."""
    with path.open("rb") as file:
        return bool(_magic(file))


def unpacked(file: IO[bytes], start: int = 0) -> IO[bytes]:
    """A file from a byte on, which has to be the first if it is packed. Reading raises one of :data:`FAULTS`."""
    magic = _magic(file)
    if not magic:
        file.seek(start)
        return file
    most = max(ALWAYS_BYTES, SWELLING * os.fstat(file.fileno()).st_size)
    chunks = next(unpack for kind, unpack in UNPACKERS.items() if magic.startswith(kind))
    return io.BufferedReader(_Joined(chunks(file), most), CHUNK)


def _magic(file: IO[bytes]) -> bytes:
    """The first bytes of a file that is packed; empty for others."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic if magic.startswith(tuple(UNPACKERS)) else b""


def _bounded(text: IO[bytes]) -> Iterator[bytes | int]:
    """Lines; of one that is too long only its length."""
    while data := text.readline(LINE_BYTES + 1):
        size, ended = len(data), data.endswith(b"\n")
        if size <= LINE_BYTES:
            yield data
            continue
        while not ended and (data := text.readline(CHUNK)):
            size, ended = size + len(data), data.endswith(b"\n")
        yield size


class _Joined(io.RawIOBase):
    """Stretches of bytes as one file, which ends with :class:`Bomb` where it gets too long."""

    def __init__(self, chunks: Iterator[bytes], most: int) -> None:
        self._chunks, self._left, self._room = chunks, memoryview(b""), most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._left = memoryview(chunk)
            self._room -= len(chunk)
            if self._room < 0:
                raise Bomb
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _gzip_chunks(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(file) as text:
        while data := text.read(CHUNK):
            yield data


def _zip_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The files of a zip one after the other, each with a line end; not folders, nor what macOS adds."""
    names_files = file.read(4) == b"PK\x03\x04"
    with zipfile.ZipFile(file) as archive:
        if names_files and not archive.infolist():
            raise zipfile.BadZipFile  # its list of files is damaged in a way that looks like the end
        for part in archive.infolist():
            if part.is_dir() or part.filename.startswith("__MACOSX/"):
                continue
            last, size = b"\n", 0
            with archive.open(part) as text:
                while data := text.read(CHUNK):
                    yield data
                    last, size = data, size + len(data)
            if size != part.file_size:
                raise zipfile.BadZipFile
            if not last.endswith(b"\n"):
                yield b"\n"


def _zstd_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The frames of a Zstandard file; the library's own reader takes a cut for the end."""
    frame, left = None, b""
    while data := left or file.read(ZSTD_CHUNK):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(data)
        left = b""
        if frame.eof:
            left, frame = frame.unused_data, None
    if frame:
        raise EOFError


UNPACKERS: dict[bytes, Callable[[IO[bytes]], Iterator[bytes]]] = {
    b"\x1f\x8b": _gzip_chunks,
    b"\x28\xb5\x2f\xfd": _zstd_chunks,
    b"PK\x03\x04": _zip_chunks,
    b"PK\x05\x06": _zip_chunks,  # one without files
}
