"""What img2dataset writes, in the output formats ``files`` and ``parquet``; ``webdataset`` is :class:`CaptionTars`.

    00000/000000012.jpg     the picture: jpg, png, webp, or as it came
    00000/000000012.txt     its caption
    00000/000000012.json    caption, url, key, status, width, height, ... and any column that was asked for

Source: https://github.com/rom1504/img2dataset, writer.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data_pipelines.places import Remote
from data_pipelines.sources.base import WHOLE, Bytes, Draft, Packed, Place, Rejection, Rows, Source, Span, unicode
from data_pipelines.sources.lines import json_value
from mm1.errors import UserError
from mm1.sample import Text

PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
LONG_BYTES = 1 << 24  # no caption and no description has as much

NO_PICTURE = "no picture beside the caption"
NO_CAPTION = "no caption beside the picture"
EMPTY_CAPTION = "empty caption"
NO_UTF8 = "caption is not UTF-8"
NOT_DOWNLOADED = "picture was not downloaded"
NO_DESCRIPTION = "description is no JSON object"
TWICE = "two files of one name"


def split(name: str) -> tuple[str, str]:
    """Key and kind of a member: ``00/12.jpg`` is a ``jpg`` of ``00/12``."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def caption_draft(
    place: str, stream: str, members: Sequence[tuple[str, Place]], column: str | None = None
) -> Draft | Rejection:
    """The document that the files of one key make.

    Args:
        place: What to call it.
        stream: Where it goes.
        members: Kind and place of each file.
        column: The column of ``json`` that has the caption; by default ``txt`` has it, or else the column ``caption``.
    """
    by_kind = dict(members)
    if not unicode(place):
        return Rejection(place.encode(errors="replace").decode(), "name is not Unicode")
    if len(by_kind) < len(members):
        return Rejection(place, TWICE)
    row = _description(by_kind["json"]) if "json" in by_kind else {}
    lost = () if row is not None else (Rejection(f"{place}.json", NO_DESCRIPTION),)
    row = row or {}
    if not_downloaded(row):
        return Rejection(place, NOT_DOWNLOADED, fault=False)
    pictures = [by_kind[kind] for kind in PICTURES if kind in by_kind]
    if not pictures:
        return Rejection(place, NO_PICTURE)
    caption, why = _caption(by_kind, row, column)
    if not caption:
        return Rejection(place, why)
    about = {name: value for name, value in row.items() if name != (column or "caption")}
    return Draft(place, stream, (pictures[0], Text(caption)), group(row, place), about=about, lost=lost)


def not_downloaded(row: Mapping[str, Any]) -> bool:
    """Whether img2dataset says that it has no picture for this row."""
    return row.get("status", "success") != "success"


def group(row: Mapping[str, Any], place: str) -> str:
    """What decides the split: the URL, so that a picture that was published twice stays on one side."""
    url = row.get("url")
    return url if isinstance(url, str) and url and unicode(url) else place


class CaptionFolders(Source):
    """Folders of ``KEY.jpg`` beside ``KEY.txt`` and ``KEY.json``; each folder is read apart.

    Args:
        files: Folders of this machine; those inside of them count as well.
        root: As for every :class:`Source`.
        stream: As for every source.
        column: The column of ``KEY.json`` that has the caption, instead of ``KEY.txt``.
    """

    stream = "captions"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.column = column

    def files(self) -> list[Path | Remote]:
        """The folders that have files with the kinds of names that are read.

        Raises:
            UserError: A folder is not there, or none has such files.
        """
        found: list[Path | Remote] = []
        for one in self.given:
            if not os.path.isdir(one):
                raise UserError(f"files has {one}; expected a folder of this machine with KEY.jpg beside KEY.txt")
            for folder, inner, names in os.walk(one):
                inner.sort()
                if any(split(name)[1] in PICTURES for name in names):
                    found.append(Path(folder))
        if not found:
            raise UserError(
                f"files has {', '.join(map(str, self.given))}, without a picture; expected KEY.jpg in folders"
            )
        return found

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        names = sorted(name for name in os.listdir(path) if split(name)[1] in (*PICTURES, "txt", "json"))
        told = (name for name in sorted(names, key=split) if not name.endswith("_stats.json"))
        for key, members in groupby(told, lambda name: split(name)[0]):
            kinds = [(split(name)[1], path / name) for name in members]
            yield caption_draft(f"{path.name}:{key}", self.stream, kinds, self.column)


class CaptionParquet(Rows):
    """Rows of ``key``, ``caption``, the bytes of a picture in a column called by its format, and what else is known.

    Pictures may also be as Hugging Face's datasets keep them, ``{"bytes", "path"}``.

    Args:
        files: As for every :class:`Source`.
        root: As for every source.
        stream: As for every source.
        picture: The column of pictures; by default the first of jpg, jpeg, png, webp, gif, image.
        column: The column of captions; by default caption or text.
    """

    stream = "captions"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        picture: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.pictures = (picture,) if picture else (*PICTURES, "image")
        self.columns = (column,) if column else ("caption", "text")

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        if not_downloaded(row):
            yield Rejection(place, NOT_DOWNLOADED, fault=False)
            return
        found = (picture_bytes(row.get(name)) for name in self.pictures)
        data = next((data for data in found if data), None)
        caption = next((row[name] for name in self.columns if row.get(name) is not None), "")
        if not data:
            yield Rejection(place, NO_PICTURE)
        elif not isinstance(caption, str) or not caption.strip():
            yield Rejection(place, EMPTY_CAPTION)
        else:
            items = (Bytes(place, data), Text(caption.strip()))
            yield Draft(place, self.stream, items, group(row, place), about=plain(row, self.columns))


def picture_bytes(value: Any) -> bytes | None:
    """The picture in a cell, if there is one."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def plain(row: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a row with one plain value: no bytes, no lists such as embeddings."""
    return {
        name: value
        for name, value in row.items()
        if name not in but and (value is None or isinstance(value, str | int | float | bool))
    }


def _description(file: Place) -> dict[str, Any] | None:
    try:
        value = json_value(_short(file))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _caption(by_kind: Mapping[str, Place], row: Mapping[str, Any], column: str | None) -> tuple[str, str]:
    """The caption, and why there is none where it is empty."""
    why = NO_CAPTION
    if column is None and "txt" in by_kind:
        try:
            if text := _short(by_kind["txt"]).decode().strip():
                return text, ""
            why = EMPTY_CAPTION
        except (OSError, ValueError):
            why = NO_UTF8
    value = row.get(column or "caption")
    if isinstance(value, str) and value.strip():
        return value.strip(), ""
    return "", why if (column or "caption") not in row else EMPTY_CAPTION


def _short(file: Place) -> bytes:
    """The bytes of a text.

    Raises:
        ValueError: It is longer than any caption.
        OSError: It cannot be read.
    """
    size = file.size if isinstance(file, Packed) else file.stat().st_size if isinstance(file, Path) else 0
    if size > LONG_BYTES:
        raise ValueError(f"{size} bytes")
    return file.read_bytes()
