"""Papers of MINT-1T (Awadalla et al. 2024, arXiv 2406.11271), PDF and ArXiv: a text, and a TIFF of its pictures.

KEY.json  {"images": ["page_0_image_85", null], "texts": [null, "Figure 1 ..."]}      KEY.tiff  page 0
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import PIL.Image

from data_pipelines.sources.base import WHOLE, WRONG_FIELDS, Draft, Packed, Place, Rejection, Source, Span, WrongFields
from data_pipelines.sources.img2dataset import TWICE
from data_pipelines.sources.lines import LINE_BYTES, stem
from data_pipelines.sources.obelics import parallel
from data_pipelines.sources.pictured import scalars
from data_pipelines.sources.rows import json_value
from data_pipelines.sources.tars import CUT, split, tar_members
from mm1.data.image import MAX_PIXELS
from mm1.sample import Text

PAGES = ("tiff", "tif")
MOST_PAGES = 10_000
PAIRED = "pages and names of pictures do not match"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a TIFF inside a tar, cut out when it is read.

    Args:
        file: The TIFF.
        page: Its number there; the first is 0.
        name: What to call it.
    """

    file: Packed
    page: int
    name: str

    def read_bytes(self) -> bytes:
        """The page as PNG, which loses nothing.

        Raises:
            OSError: The page cannot be read.
        """
        try:
            with PIL.Image.open(io.BytesIO(self.file.read_bytes()), formats=("TIFF",)) as tiff:
                tiff.seek(self.page)
                if tiff.width * tiff.height > MAX_PIXELS:
                    raise OSError(f"page of more than {MAX_PIXELS // 10**6} megapixels")
                file = io.BytesIO()
                page = tiff if tiff.mode in ("1", "L", "RGB", "RGBA") else tiff.convert("RGB")
                page.save(file, "PNG", compress_level=1)
        except OSError:
            raise
        except Exception as error:  # PIL's readers raise whatever a broken file makes them raise
            raise OSError("page does not decode") from error
        return file.getvalue()


class Mint1tPages(Source):
    """Tars of ``KEY.json`` with ``KEY.tiff``, as published; a document without pictures needs no TIFF.

    The n-th picture that a document names is the n-th page of its TIFF; one with other than that many pages is left
    out, since nothing else says which page belongs where.
    """

    stream = "interleaved"

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        members, whole = tar_members(path)
        seen: set[str] = set()
        for key, group in groupby(members, lambda member: split(member.name)[0]):
            place = f"{stem(path)}:{key}"
            members_of = list(group)
            by_kind = {split(member.name)[1]: member for member in members_of}
            if key in seen or len(by_kind) < len(members_of):
                yield Rejection(place, TWICE)
                continue
            seen.add(key)
            try:
                yield self._draft(place, by_kind)
            except WrongFields:
                yield Rejection(place, WRONG_FIELDS)
        if not whole:
            yield Rejection(path.name, CUT)

    def _draft(self, place: str, by_kind: dict[str, Packed]) -> Draft | Rejection:
        row = _row(by_kind.get("json"))
        images, texts = parallel(row)
        named = sum(image is not None for image in images)
        tiff = next((by_kind[kind] for kind in PAGES if kind in by_kind), None)
        if named != (_pages(tiff) if tiff else 0):
            return Rejection(place, PAIRED)
        items: list[Text | Place] = []
        page = 0
        for image, text in zip(images, texts, strict=True):
            if image is not None and tiff:
                items.append(Page(tiff, page, f"{place} {image}"))
                page += 1
            elif text and text.strip():
                items.append(Text(text.strip()))
        if not any(isinstance(item, Text) for item in items):
            return Rejection(place, "empty document")
        return Draft(place, self.stream, tuple(items), place, loose=True, about=scalars(row))


def _row(member: Packed | None) -> dict[str, Any]:
    if member is None or member.size > LINE_BYTES:
        raise WrongFields
    try:
        row = json_value(member.read_bytes())
    except ValueError:
        raise WrongFields from None
    if not isinstance(row, dict):
        raise WrongFields
    return row


def _pages(tiff: Packed) -> int:
    """How many pages a TIFF has; -1 where it cannot be told."""
    try:
        with PIL.Image.open(io.BytesIO(tiff.read_bytes()), formats=("TIFF",)) as pages:
            return min(getattr(pages, "n_frames", 1), MOST_PAGES)
    except Exception:  # PIL's readers raise whatever a broken file makes them raise
        return -1
