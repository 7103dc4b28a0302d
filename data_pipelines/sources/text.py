"""Text without pictures: ``text/*.jsonl``, a document a line, and ``text/*.txt``, cut into documents at blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import WHOLE, Draft, Rejection, Rows, Source, Span, WrongFields
from mm1.sample import Text

DOCUMENT_CHARACTERS = 8_000  # a book in one document would be on one side of the validation split


class TextLines(Rows):
    """``{"text"}`` a line."""

    stream = "text"
    pattern = "text/*.jsonl"

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        text = row.get("text")
        if not isinstance(text, str):
            raise WrongFields
        if text.strip():
            yield Draft(place, self.stream, (Text(text.strip()),), place)
        else:
            yield Rejection(place, "empty document")


class PlainText(Source):
    """Paragraphs (stretches between blank lines), joined to documents of at most ``DOCUMENT_CHARACTERS``.

    A paragraph is never cut here; one that is longer is a document of its own.
    """

    stream = "text"
    pattern = "text/*.txt"

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        gathered: list[str] = []
        start, characters = 1, 0
        for number, paragraph in _paragraphs(path):
            if paragraph is None:
                yield Rejection(f"{path.stem}:{number}", "text is not UTF-8")
                continue
            if gathered and characters + len(paragraph) > DOCUMENT_CHARACTERS:
                yield self._draft(path, start, gathered)
                gathered, characters = [], 0
            start = start if gathered else number
            gathered.append(paragraph)
            characters += len(paragraph) + 2
        if gathered:
            yield self._draft(path, start, gathered)

    def _draft(self, path: Path, start: int, paragraphs: list[str]) -> Draft:
        place = f"{path.stem}:{start}"
        return Draft(place, self.stream, (Text("\n\n".join(paragraphs)),), place)


def _paragraphs(path: Path) -> Iterator[tuple[int, str | None]]:
    """Number of the first line, and the paragraph, None where it is not UTF-8."""
    gathered: list[bytes] = []
    start = 1
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                start = start if gathered else number
                gathered.append(line)
            elif gathered:
                yield start, _decoded(gathered)
                gathered = []
    if gathered:
        yield start, _decoded(gathered)


def _decoded(lines: list[bytes]) -> str | None:
    try:
        return b"".join(lines).decode().replace("\r\n", "\n").strip("\n")
    except UnicodeDecodeError:
        return None
