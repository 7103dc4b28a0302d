"""What a kind of raw file has to tell: documents whose pictures are still paths, and what it could not use and why."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mm1.sample import Text

HELD_OUT = ("_dev", "_val", "_test")


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
class Draft:
    """A document as its file tells it. Pictures are read later, by many processes.

    Args:
        id: Unique within the stream: file and line, ``flickr8k_train:12``.
        source: The stream.
        items: Text, and where the pictures are, in reading order.
        group: What decides the split; documents about one picture share it.
        loose: Whether the document makes sense without a picture that cannot be read.
    """

    id: str
    source: str
    items: tuple[Text | Path | Packed, ...]
    group: str
    loose: bool = False


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


class Source(ABC):
    """A kind of file.

    Args:
        corpus: The raw corpus folder.
        captions_per_image: For kinds with several texts about one picture, how many of them become documents.

    Attributes:
        stream: Where its documents go.
        pattern: Where its files are in the corpus.
        opt_in: Whether it is read only when asked for.
    """

    stream: ClassVar[str]
    pattern: ClassVar[str]
    opt_in: ClassVar[bool] = False

    def __init__(self, corpus: Path, captions_per_image: int = 1) -> None:
        self.corpus, self.captions_per_image = corpus.resolve(), captions_per_image

    def files(self) -> list[Path]:
        """The files of this kind, in order."""
        return sorted(self.corpus.glob(self.pattern))

    def drafts(self) -> Iterator[Draft | Rejection]:
        """All documents of all files; those of files held out by their name as rejections."""
        for path in self.files():
            for draft in self.read(path):
                if path.stem.endswith(HELD_OUT):
                    yield Rejection(draft.id, "file held out by its name", fault=False)
                elif isinstance(draft, Draft) and not all(_unicode(i.text) for i in draft.items if isinstance(i, Text)):
                    yield Rejection(draft.id, "text is not Unicode")
                else:
                    yield draft

    @abstractmethod
    def read(self, path: Path) -> Iterator[Draft | Rejection]:
        """The documents of one file, in order."""

    def picture(self, file: Path, name: Any, base: Path | None = None) -> Path:
        """The path of a picture that ``file`` names, relative to ``base`` or else to the file's folder.

        Raises:
            WrongFields: The name is no text, or climbs out of the corpus.
        """
        if not isinstance(name, str) or not name or "\0" in name or not _unicode(name):
            raise WrongFields
        path = Path(os.path.normpath((base or file.parent) / name))
        if not path.is_relative_to(self.corpus):
            raise WrongFields
        return path


def _unicode(text: str) -> bool:
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
    """A kind of file with a JSON object a line."""

    def read(self, path: Path) -> Iterator[Draft | Rejection]:
        for place, row in json_lines(path):
            if row is None:
                yield Rejection(place, "line is no JSON object")
                continue
            try:
                yield from self.documents(path, place, row)
            except WrongFields:
                yield Rejection(place, WRONG_FIELDS)

    @abstractmethod
    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        """What one row of ``path`` becomes.

        Raises:
            WrongFields: The row has not the fields of its kind; nothing was yielded before.
        """


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each line that is not blank; a line that is no JSON object comes as None."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path.stem}:{number}", _object(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
