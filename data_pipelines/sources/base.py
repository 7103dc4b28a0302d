"""What a kind of raw file has to tell: documents whose pictures are still places, and what it could not use and why."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from data_pipelines.places import Remote, address_of, expand, local
from data_pipelines.sources.lines import Damage, stem
from data_pipelines.sources.rows import row_starts, rows
from mm1.sample import Text

HELD_OUT = ("_dev", "_val", "_test")


class Place(Protocol):
    """Where the bytes of a picture are: a file (``Path``), :class:`Packed`, :class:`Bytes`, or an address."""

    @property
    def name(self) -> str:
        """What to call it in a message."""

    def read_bytes(self) -> bytes:
        """The bytes of its file.

        Raises:
            OSError: It is not there, or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Packed:
    """A file inside a tar, by where its bytes stand.

    Args:
        path: The tar.
        name: Its name there.
        offset: Its first byte.
        size: How many bytes it has.
    """

    path: Path
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Its bytes, as ``Path.read_bytes`` gives those of a file of its own."""
        with self.path.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.size)


@dataclass(frozen=True, slots=True)
class Bytes:
    """A picture that came with its row, as in parquet and in base64.

    Args:
        name: What to call it.
        data: The bytes of its file.
    """

    name: str
    data: bytes = field(repr=False)

    def read_bytes(self) -> bytes:
        """The bytes of its file."""
        return self.data


@dataclass(frozen=True, slots=True)
class Rejection:
    """What is not trained on.

    Args:
        id: The document, or the place in the file where one should stand.
        reason: A few words, the same for all cases, to be counted.
        fault: Whether something is broken, so that ``--strict`` stops; false for what is left out on purpose.
    """

    id: str
    reason: str
    fault: bool = True


@dataclass(frozen=True, slots=True)
class Draft:
    """A document as its file tells it. Pictures are read later.

    Args:
        id: Unique within the stream: file and line, ``flickr8k_train:12``.
        source: The stream.
        items: Text, and where the pictures are, in reading order.
        group: What decides the split; documents about one picture share it.
        loose: Whether the document makes sense without a picture that cannot be read.
        about: What else its file says of it, under that file's own names: ``url``, ``similarity``, ``language``, ...
        lost: Parts of it that were left out on the way.
    """

    id: str
    source: str
    items: tuple[Text | Place, ...]
    group: str
    loose: bool = False
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)
    lost: tuple[Rejection, ...] = ()

    @property
    def text(self) -> str:
        """All of its text, items parted by blank lines."""
        return "\n\n".join(item.text for item in self.items if isinstance(item, Text))

    @property
    def pictures(self) -> tuple[Place, ...]:
        """Where its pictures are, in order."""
        return tuple(item for item in self.items if not isinstance(item, Text))


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a file that can be read without what stands before it.

    Args:
        start: Where it begins: a byte of a file of lines, a row group of a parquet file.
        stop: Where the next one begins; None for the rest of the file.
        number: How many rows stand before it.
    """

    start: int = 0
    stop: int | None = None
    number: int = 0


WHOLE = Span()


class Source(ABC):
    """A kind of file. A new kind is one class like this; ``class_path`` in a pipeline's YAML names it.

    Args:
        files: Paths or fsspec addresses, with ``*`` and ``{000..012}``; one or several.
        root: Folder that names of pictures are relative to and may not climb out of; by default that of each file.
        stream: Where its documents go, if not where its kind usually does.

    Attributes:
        pattern: Where its files are in a raw corpus folder (docs/data.md); empty for kinds that have no place there.
        opt_in: Whether it is read from a raw corpus folder only when asked for.
    """

    stream: str
    pattern: ClassVar[str] = ""
    opt_in: ClassVar[bool] = False

    def __init__(
        self, files: str | Path | Sequence[str | Path], *, root: Path | None = None, stream: str | None = None
    ) -> None:
        self.given = [files] if isinstance(files, str | Path) else list(files)
        self.root = root.resolve() if root else None
        if stream:
            self.stream = stream

    @classmethod
    def takes(cls, path: Path) -> bool:
        """Whether a file that ``pattern`` finds is of this kind."""
        return True

    def files(self) -> list[Path | Remote]:
        """The files of this kind, in order."""
        return expand(self.given)

    def spans(self, path: Path, rows: int) -> list[Span]:
        """Stretches of ``path`` of about ``rows`` rows, which may be read apart; the whole file where it has to be."""
        return [WHOLE]

    def drafts(self) -> Iterator[Draft | Rejection]:
        """All documents of all files."""
        for file in self.files():
            yield from self.drafts_in(local(file))

    def drafts_in(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        """The documents of a stretch; those of files held out by their name, and files of no bytes, as rejections."""
        draft: Draft | Rejection | None = None
        for draft in self.read(path, span):
            if stem(path).endswith(HELD_OUT):
                yield Rejection(draft.id, "file held out by its name", fault=False)
            elif isinstance(draft, Draft) and not all(unicode(i.text) for i in draft.items if isinstance(i, Text)):
                yield Rejection(draft.id, "text is not Unicode")
            else:
                yield draft
        if draft is None and path.is_file() and not path.stat().st_size:
            yield Rejection(path.name, "file is empty")

    @abstractmethod
    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        """The documents of a stretch of a local file, in order."""

    def picture(self, file: Path, name: Any, base: Path | None = None) -> Place:
        """The place of a picture that ``file`` names, relative to ``base``, or else to the file's folder.

        Raises:
            WrongFields: The name is no text, or climbs out of the folder of pictures.
        """
        if not isinstance(name, str) or not name or "\0" in name or not unicode(name):
            raise WrongFields
        if remote := address_of(file):
            try:
                return remote.beside(name)
            except ValueError:
                raise WrongFields from None
        path = Path(os.path.normpath((base or file.parent) / name))
        if not path.is_relative_to(self.root or file.parent):
            raise WrongFields
        return path

    def group(self, picture: Place) -> str:
        """What decides the split for documents about this picture: its name within the corpus."""
        if self.root and isinstance(picture, Path):
            return str(picture.relative_to(self.root))
        return str(picture) if isinstance(picture, Path) else picture.name


def unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


WRONG_FIELDS = "wrong fields"


class WrongFields(ValueError):
    """A row has not the fields of its kind; caught by the source, which rejects the row."""


class Rows(Source):
    """A kind of file with a row after the other: JSON lines or a JSON list, packed or not, or parquet."""

    def spans(self, path: Path, rows: int) -> list[Span]:
        """Blocks of so many rows; the whole of a file that is packed."""
        found = row_starts(path, rows)
        stops = [start for start, _ in found[1:]]
        return [Span(start, stop, number) for (start, number), stop in zip(found, [*stops, None], strict=True)]

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        for place, row in self.rows(path, span):
            if isinstance(row, Damage):
                yield Rejection(place, row.reason)
                continue
            try:
                yield from self.documents(path, place, row)
            except WrongFields:
                yield Rejection(place, WRONG_FIELDS)

    def rows(self, path: Path, span: Span) -> Iterator[tuple[str, dict[str, Any] | Damage]]:
        """Place and value of each row of a stretch, or why it has none."""
        return placed_rows(path, span)

    @abstractmethod
    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        """What one row of ``path`` becomes.

        Raises:
            WrongFields: The row has not the fields of its kind; nothing was yielded before.
        """


def placed_rows(path: Path, span: Span = WHOLE) -> Iterator[tuple[str, dict[str, Any] | Damage]]:
    """Place and value of each row, or why it has none."""
    for number, row in rows(path, span.start, span.stop, span.number):
        yield f"{stem(path)}:{number}", row


def json_lines(path: Path, span: Span = WHOLE) -> Iterator[tuple[str, Any]]:
    """The same with None for a row that is no JSON object."""
    for place, row in placed_rows(path, span):
        yield place, row if isinstance(row, dict) else None
