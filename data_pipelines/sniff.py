"""What a file is by what stands in it, whatever it is called: magic bytes, first rows, names of columns and members.

Only the beginning is read, inside a wrapping of gzip, zstd or zip too. Nothing here raises for what a file holds: one
that tells nothing is :class:`Seen` as just that, in words.
"""

from __future__ import annotations

import io
import json
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Holder = Literal["lines", "list", "object", "tar", "parquet", "table", "html", "warc", "text", "picture", "nothing"]

HEAD_BYTES, LONG_ROW_BYTES = 1 << 20, 1 << 26
ROWS, MEMBERS = 10, 200
MAGIC = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
}
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
UNREAD = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"%PDF": "PDF",
    b"\x93NUMPY": "numpy",
    b"ARROW1": "Arrow",
}
ADDRESS = re.compile(r"https?://\S+$")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the beginning of a file tells.

    Args:
        holder: How it holds its rows: JSON a line, a JSON list, one JSON object, members of a tar, ...
        told: The same for people, with names.
        fields: Names with the first value that is not null; of parquet with the type as text; of a table the cells of
            the first row by number.
        kinds: Of a tar the endings of its members, lower case.
        wrapped: ``gzip``, ``zstd`` or ``zip``, if it is.
    """

    holder: Holder
    told: str
    fields: dict[str, Any] = field(default_factory=dict)
    kinds: frozenset[str] = frozenset()
    wrapped: str = ""

    def has(self, *names: str) -> bool:
        """Whether all of these fields are there."""
        return self.fields.keys() >= {*names}


def look(path: Path) -> Seen:
    """What ``path``, a file of this machine, is."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return Seen("nothing", "a folder" if stat.S_ISDIR(mode) else "no file but a pipe, socket or device")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        return Seen("nothing", f"not readable ({getattr(error, 'strerror', None) or error})")
    wrapped = next((name for magic, name in PACKED.items() if head.startswith(magic)), "")
    if wrapped:
        head = _unwrapped(path, head, wrapped)
    seen = _seen(path, head, wrapped)
    return (
        Seen(seen.holder, f"{seen.told}, packed with {wrapped}", seen.fields, seen.kinds, wrapped) if wrapped else seen
    )


def _unwrapped(path: Path, head: bytes, wrapped: str) -> bytes:
    """The beginning of what is packed; nothing where that is broken."""
    try:
        if wrapped == "gzip":
            return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        if wrapped == "zip":
            with zipfile.ZipFile(path) as packed, packed.open(packed.namelist()[0]) as member:
                return member.read(HEAD_BYTES)
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(head)).read(HEAD_BYTES)
    except Exception:  # each library has errors of its own for what is broken, and there is nothing to tell apart
        return b""


def _seen(path: Path, head: bytes, wrapped: str) -> Seen:
    if not head:
        return Seen("nothing", "damaged data" if wrapped else "an empty file")
    if not head.strip(b"\0"):
        return Seen("nothing", "nothing but zero bytes")
    if head[257:262] == b"ustar":
        return _tar(path, head)
    if head.startswith(b"PAR1"):
        return _parquet(path) if not wrapped else Seen("nothing", "parquet")
    for magic, told in MAGIC.items():
        if head.startswith(magic):
            return Seen("picture", told)
    for magic, told in UNREAD.items():
        if head.startswith(magic):
            return Seen("nothing", f"{told} data")
    return _written(path, head, wrapped)


def _tar(path: Path, head: bytes) -> Seen:
    """The first members of a tar; of a packed one those that the beginning holds."""
    kinds: dict[str, None] = {}
    row: dict[str, Any] = {}
    try:
        packed = path.open("rb") if head == _start(path, len(head)) else io.BytesIO(head)
        with packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in islice(tar, MEMBERS):
                if member.isfile():
                    kind = PurePosixPath(member.name).name.partition(".")[2].lower()
                    kinds[kind] = None
                    if kind.endswith("json") and not row and member.size <= LONG_ROW_BYTES:
                        data = tar.extractfile(member)
                        row = next(_objects([data.read() if data else b""]), {})
    except Exception:  # a damaged tar raises what it likes; what was seen before counts
        pass
    if not kinds:
        return Seen("nothing", "a tar without a file that can be read")
    beside = f", whose JSON has {_named(row)}" if row else ""
    return Seen("tar", f"a tar of {_named(kinds)} members{beside}", row, frozenset(kinds))


def _start(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _parquet(path: Path) -> Seen:
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except Exception:  # of a damaged file pyarrow raises errors of a dozen kinds
        return Seen("nothing", "damaged parquet")
    fields = {column.name: str(column.type) for column in schema}
    return Seen("parquet", f"parquet with the columns {_named(fields)}", fields)


def _written(path: Path, head: bytes, wrapped: str) -> Seen:
    """What people and programs write as text: JSON of three shapes, HTML, a table, prose."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb'\[\s*[\[{"\d]', start):
        return _list(start)
    if _BRACED.match(start) or _mostly_braced(start):
        whole = start if wrapped or len(head) < HEAD_BYTES else _start(path, LONG_ROW_BYTES)  # a long row or object
        lines = start.split(b"\n")
        if rows := list(islice(_objects(lines), ROWS)) or list(islice(_objects(whole.split(b"\n")), ROWS)):
            fields = _fields(rows)
            return Seen("lines", f"{'lines' if len(rows) > 1 else 'a line'} of JSON with {_named(fields)}", fields)
        if row := next(_objects([whole]), None):
            return Seen("object", f"one JSON object with {_named(row)}", row)
        return Seen("nothing", "text that begins like JSON and is none")
    if start.startswith(b"WARC/"):
        return Seen("warc", "a WARC archive")
    if _HTML.match(start):
        return Seen("html", "a page of HTML")
    return _prose(head)


def _mostly_braced(start: bytes) -> bool:
    """Whether most of the first lines look like JSON objects, though the very first one does not."""
    lines = [line for line in start.split(b"\n")[: 2 * ROWS] if line.strip()]
    return 2 * sum(bool(_BRACED.match(line)) for line in lines) > len(lines)


_BRACED = re.compile(rb'\{\s*["}]')
_HTML = re.compile(rb"(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


def _list(start: bytes) -> Seen:
    """The first rows of a JSON list, as far as the beginning holds them."""
    text, at = start.decode("utf-8", "replace"), 1
    rows: list[dict[str, Any]] = []
    while len(rows) < ROWS:
        at += len(text[at : at + 1000]) - len(text[at : at + 1000].lstrip(" \t\r\n,"))
        try:
            row, at = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        rows += [row] if isinstance(row, dict) else []
    if not rows:
        return Seen("nothing", "a JSON list of no objects")
    fields = _fields(rows)
    return Seen("list", f"a JSON list of objects with {_named(fields)}", fields)


def _prose(head: bytes) -> Seen:
    """A table of tabs or commas with addresses in a column, or else text; bytes that are neither say so."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("utf-8", "replace")
    if "\0" in text or text.count("\ufffd") > len(text) / 10:
        return Seen("nothing", f"binary data ({head[:4].hex(' ')} ...)")
    lines = text.splitlines()[:ROWS]
    for mark, told in (("\t", "tabs"), (",", "commas")):
        rows = [line.split(mark) for line in lines if line.strip()]
        width = min((len(row) for row in rows[:-1] or rows), default=0)
        if width > 1 and (cells := _addressed(rows)):
            named = {str(number): cell for number, cell in enumerate(cells)}
            return Seen("table", f"a table parted by {told}, with addresses", named)
    return Seen("text", "text")


def _addressed(rows: list[list[str]]) -> list[str]:
    """The first row of a table that has a cell with a web address."""
    return next((row for row in rows if any(ADDRESS.match(cell.strip()) for cell in row)), [])


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among these texts."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _fields(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Every name of the rows with its first value that is not null."""
    fields: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if fields.get(name) is None:
                fields[name] = value
    return fields


def _named(names: Iterable[str]) -> str:
    """Names for a sentence, the first eight of them, without what would break its line."""
    shown = [ascii(name)[1:-1][:40] for name in islice(names, 9)]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "no names"
