"""Pictures with captions in tars, as img2dataset and webdataset write them: ``captions/*.tar``."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from data_pipelines.sources.base import WHOLE, Draft, Packed, Rejection, Source, Span
from mm1.sample import Text

PICTURES = ("jpg", "jpeg", "png", "webp")
CUT = "tar is cut short or damaged"


class CaptionTars(Source):
    """``KEY.jpg`` beside ``KEY.txt``, or ``KEY.json`` with a ``caption``; the members of a key stand together.

    Of a tar that was cut short everything before the cut is used, and the cut is counted.
    """

    stream = "captions"
    pattern = "captions/*.tar"

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        members, whole = _members(path)
        for key, group in groupby(members, lambda member: _split(member.name)[0]):
            found = self._draft(f"{path.stem}:{key}", list(group))
            if whole or isinstance(found, Draft) or found.id != f"{path.stem}:{_split(members[-1].name)[0]}":
                yield found  # what is broken off with the tar is counted with it
        if not whole:
            yield Rejection(path.name, CUT)

    def _draft(self, place: str, members: list[Packed]) -> Draft | Rejection:
        by_kind = {_split(member.name)[1]: member for member in members}
        pictures = [by_kind[kind] for kind in PICTURES if kind in by_kind]
        caption = _caption(by_kind)
        if not pictures:
            return Rejection(place, "no picture beside the caption")
        if not caption:
            return Rejection(place, "empty caption")
        return Draft(place, self.stream, (pictures[0], Text(caption)), place)


def _members(path: Path) -> tuple[list[Packed], bool]:
    """The files of a tar that are whole, and whether the tar is: :mod:`tarfile` takes most damage for the end."""
    found: list[Packed] = []
    file_bytes = path.stat().st_size
    with contextlib.suppress(tarfile.TarError), tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.offset_data + member.size > file_bytes:
                return found, False
            if member.isfile():
                found.append(Packed(path, member.name, member.offset_data, member.size))
        return found, Packed(path, "end mark", tar.offset, tarfile.BLOCKSIZE).read_bytes() == bytes(tarfile.BLOCKSIZE)
    return found, False


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member: ``00/12.jpg`` is a ``jpg`` of ``00/12``."""
    path = PurePosixPath(name)
    base, _, kind = path.name.partition(".")
    return str(path.parent / base), kind.lower()


def _caption(by_kind: dict[str, Packed]) -> str:
    """The caption, empty where there is none that can be read."""
    for kind in ("txt", "json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # absent, no UTF-8, no JSON, or of another shape
            text = by_kind[kind].read_bytes().decode()
            caption = json.loads(text)["caption"] if kind == "json" else text
            if isinstance(caption, str) and caption.strip():
                return caption.strip()
    return ""
