"""Captions in tables that name their pictures: CC3M, CC12M, LAION, COYO, DataComp, LLaVA's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.picture_store import MISSING, PictureStore
from data_pipelines.sources.base import (
    WHOLE,
    WRONG_FIELDS,
    Draft,
    Rejection,
    Rows,
    Source,
    Span,
    WrongFields,
)
from data_pipelines.sources.img2dataset import EMPTY_CAPTION, NOT_DOWNLOADED, not_downloaded, plain
from data_pipelines.sources.lines import Damage, lines, starts, stem
from mm1.errors import UserError
from mm1.sample import Text

URLS = ("url", "URL", "image")
CAPTIONS = ("caption", "text", "TEXT", "blip_caption", "conversations")


class CaptionTable(Rows):
    """Parquet, JSON lines or a JSON list with a URL or name of a picture and its caption in each row.

        LAION       URL, TEXT, similarity, punsafe, ...
        COYO        url, text, aesthetic_score_laion_v2, ...
        DataComp    uid, url, text, clip_l14_similarity_score, ...
        LLaVA       image, caption, blip_caption; or image, conversations

    Every other column with a plain value is what the file says of the document, for filters to look at.

    Args:
        files: As for every :class:`Source`.
        pictures: Where the pictures are.
        root: As for every source.
        stream: As for every source.
        picture: The column of URLs or names; by default the first there is of url, URL, image.
        column: The column of captions; by default caption, text, TEXT, blip_caption or conversations.
    """

    stream = "captions"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        pictures: PictureStore,
        root: Path | None = None,
        stream: str | None = None,
        picture: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.pictures = pictures
        self.urls = (picture,) if picture else URLS
        self.columns = (column,) if column else CAPTIONS

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        url = next((row[name] for name in self.urls if name in row), None)
        column = next((name for name in self.columns if row.get(name) is not None), None)
        caption = "" if column is None else said(row[column])
        if not_downloaded(row):
            yield Rejection(place, NOT_DOWNLOADED, fault=False)
        else:
            yield paired(place, self.stream, url, caption, self.pictures, plain(row, [column or ""]))


class CaptionTsv(Source):
    """Lines of a caption and a URL with a tab between them, with or without names in the first line.

        CC3M     caption <TAB> url      columns: [caption, url]
        CC12M    url <TAB> caption      columns: [url, caption]

    Args:
        files: As for every :class:`Source`.
        pictures: Where the pictures are.
        root: As for every source.
        stream: As for every source.
        columns: What the cells of a line are; a first line that has these names in another order is believed.
    """

    stream = "captions"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        pictures: PictureStore,
        root: Path | None = None,
        stream: str | None = None,
        columns: Sequence[str] = ("caption", "url"),
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.pictures, self.columns = pictures, list(columns)
        if not {"caption", "url"} <= set(columns) or len(set(columns)) < len(columns):
            raise UserError(f"columns is {list(columns)}; expected caption and url among different names")

    def spans(self, path: Path, rows: int) -> list[Span]:
        """Blocks of so many lines."""
        found = starts(path, rows)
        stops = [start for start, _ in found[1:]]
        return [Span(start, stop, number) for (start, number), stop in zip(found, [*stops, None], strict=True)]

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        first = next((line.data for line in lines(path)), b"")
        named = _cells(first) if isinstance(first, bytes) else None
        has_names = named is not None and sorted(named) == sorted(self.columns)
        columns = named if named and has_names else self.columns
        for line in lines(path, span.start, span.stop, span.number):
            place = f"{stem(path)}:{line.number}"
            if isinstance(line.data, Damage):
                yield Rejection(place, line.data.reason)
            elif line.data.strip() and not (has_names and line.number == 1):
                yield self._draft(place, columns, _cells(line.data))

    def _draft(self, place: str, columns: list[str], cells: list[str] | None) -> Draft | Rejection:
        if cells is None:
            return Rejection(place, "text is not UTF-8")
        if len(cells) != len(columns):
            return Rejection(place, WRONG_FIELDS)
        row = dict(zip(columns, cells, strict=True))
        return paired(place, self.stream, row["url"], row["caption"], self.pictures, plain(row, ["caption"]))


def paired(
    place: str, stream: str, url: Any, caption: Any, pictures: PictureStore, about: dict[str, Any]
) -> Draft | Rejection:
    """A document of a caption and the picture that a store has by this URL or name, or why there is none."""
    if not isinstance(url, str) or not isinstance(caption, str) or not url.strip() or not url.strip().isprintable():
        return Rejection(place, WRONG_FIELDS)
    if not caption.strip():
        return Rejection(place, EMPTY_CAPTION)
    picture = pictures.find(url.strip())
    if picture is None:
        return Rejection(place, MISSING, fault=False)
    group = url.strip().encode(errors="replace").decode()
    return Draft(place, stream, (picture, Text(caption.strip())), group, about=about)


def said(value: Any) -> Any:
    """What a cell says: of a conversation in LLaVA's format the first answer.

    Raises:
        WrongFields: A list is no conversation.
    """
    if not isinstance(value, list):
        return value
    for turn in value:
        match turn:
            case {"from": "gpt", "value": str(answer)}:
                return answer
    raise WrongFields


def _cells(line: bytes) -> list[str] | None:
    try:
        return [cell.strip() for cell in line.decode().rstrip("\r\n").split("\t")]
    except UnicodeDecodeError:
        return None
