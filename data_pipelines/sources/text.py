"""Text without pictures: rows with a text (``text/*.jsonl``, ``*.parquet``), and plain text (``text/*.txt``).

All of them may be packed by gzip, Zstandard or zip, and none is ever held whole. Plain text is cut at blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import WHOLE, Draft, Rejection, Rows, Source, Span, WrongFields
from data_pipelines.sources.lines import SUFFIXES, Damage, is_packed, lines, stem
from data_pipelines.sources.pictured import scalars
from mm1.sample import Text

DOCUMENT_CHARACTERS = 8_000  # a book in one document would be on one side of the validation split
PARAGRAPH_BYTES = 1 << 20  # where a file has no blank lines, its paragraphs end so


def ending(path: Path) -> str:
    """How a file's name ends, apart from what packs it: ``a.jsonl.gz`` ends in ``.jsonl``."""
    return Path(path.stem).suffix if path.suffix in SUFFIXES else path.suffix


class TextLines(Rows):
    """``{"text"}`` a row; other fields go into ``about``.

    Args:
        files: As for every :class:`Source`.
        root: As for every source.
        stream: As for every source.
        column: The field that holds the text.
    """

    stream = "text"
    pattern = "text/*"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        column: str = "text",
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.column = column

    @classmethod
    def takes(cls, path: Path) -> bool:
        return ending(path) in (".jsonl", ".parquet")

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        text = row.get(self.column)
        if not isinstance(text, str):
            raise WrongFields
        if text.strip():
            yield Draft(place, self.stream, (Text(text.strip()),), place, about=scalars(row, self.column))
        else:
            yield Rejection(place, "empty document")


class PlainText(Source):
    """Paragraphs (stretches between blank lines), joined to documents of at most ``DOCUMENT_CHARACTERS``.

    A paragraph is never cut here, unless it is longer than ``PARAGRAPH_BYTES``; a long one is a document of its own.
    """

    stream = "text"
    pattern = "text/*"

    @classmethod
    def takes(cls, path: Path) -> bool:
        return ending(path) == ".txt"

    def spans(self, path: Path, rows: int) -> list[Span]:
        if is_packed(path):
            return [WHOLE]
        begins = [(at, number) for at, number, found in _documents(path, WHOLE) if isinstance(found, list)]
        begins = [(0, 1), *begins[rows::rows]]
        stops = [at for at, _ in begins[1:]]
        return [Span(at, stop, number - 1) for (at, number), stop in zip(begins, [*stops, None], strict=True)]

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        for _, number, found in _documents(path, span):
            place = f"{stem(path)}:{number}"
            if isinstance(found, Damage):
                yield Rejection(place, found.reason)
            else:
                yield Draft(place, self.stream, (Text("\n\n".join(found)),), place)


def _documents(path: Path, span: Span) -> Iterator[tuple[int, int, list[str] | Damage]]:
    """First byte, number of the first line, and the paragraphs of a document, or what was wrong there."""
    gathered: list[str] = []
    begin, start, characters = 0, 1, 0
    for at, number, paragraph in _paragraphs(path, span):
        if isinstance(paragraph, Damage):
            yield at, number, paragraph
            continue
        if gathered and characters + len(paragraph) > DOCUMENT_CHARACTERS:
            yield begin, start, gathered
            gathered, characters = [], 0
        begin, start = (begin, start) if gathered else (at, number)
        gathered.append(paragraph)
        characters += len(paragraph) + 2
    if gathered:
        yield begin, start, gathered


def _paragraphs(path: Path, span: Span) -> Iterator[tuple[int, int, str | Damage]]:
    """First byte, number of the first line, and the paragraph, or what was wrong there."""
    gathered: list[bytes] = []
    at, start, size = 0, 1, 0
    for line in lines(path, span.start, span.stop, span.number):
        blank = isinstance(line.data, Damage) or not line.data.strip()
        if gathered and (blank or size > PARAGRAPH_BYTES):
            yield at, start, _decoded(gathered)
            gathered, size = [], 0
        if isinstance(line.data, Damage):
            yield line.start, line.number, line.data
        elif not blank:
            at, start = (at, start) if gathered else (line.start, line.number)
            gathered.append(line.data)
            size += len(line.data)
    if gathered:
        yield at, start, _decoded(gathered)


def _decoded(said: list[bytes]) -> str | Damage:
    try:
        return b"".join(said).decode().replace("\r\n", "\n").strip("\n")
    except UnicodeDecodeError:
        return Damage("text is not UTF-8")
