"""Pictures with captions in tars, as img2dataset and webdataset write them: ``captions/*.tar``."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from data_pipelines.sources.base import WHOLE, Draft, Packed, Rejection, Source, Span
from data_pipelines.sources.img2dataset import TWICE, caption_draft, split

CUT = "tar is cut short or damaged"
FAULTS = (  # what tarfile raises for bytes that no tar program wrote
    *(tarfile.TarError, OSError, EOFError, ValueError, OverflowError),
    *(MemoryError, RecursionError, LookupError, TypeError),
)


class CaptionTars(Source):
    """``KEY.jpg`` beside ``KEY.txt``, or ``KEY.json`` with a ``caption``; the members of a key stand together.

    Of a tar that was cut short everything before the cut is used, and the cut is counted. What else ``KEY.json`` has,
    such as ``url``, ``width`` and ``similarity``, is what the document's file says of it.

    Args:
        files: As for every :class:`Source`.
        root: As for every source.
        stream: As for every source.
        column: The column of ``KEY.json`` that has the caption, instead of ``KEY.txt``.
    """

    stream = "captions"
    pattern = "captions/*.tar"

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

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        members, whole = tar_members(path)
        last = split(members[-1].name)[0] if members else ""
        seen: set[str] = set()
        for key, group in groupby(members, lambda member: split(member.name)[0]):
            place = f"{path.stem}:{key}"
            kinds = [(split(member.name)[1], member) for member in group]
            found = caption_draft(place, self.stream, kinds, self.column)
            if key in seen:
                yield Rejection(found.id, TWICE)
            elif whole or isinstance(found, Draft) or key != last:
                yield found  # what is broken off with the tar is counted with it
            seen.add(key)
        if not whole:
            yield Rejection(path.name, CUT)


def is_tar(path: Path) -> bool:
    """Whether a file begins as a tar does."""
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def tar_members(path: Path) -> tuple[list[Packed], bool]:
    """The files of a tar that are whole, and whether the tar is: :mod:`tarfile` takes most damage for the end.

    Raises:
        OSError: It is not there.
    """
    found: list[Packed] = []
    file_bytes = path.stat().st_size
    with contextlib.suppress(*FAULTS), tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.size < 0 or member.offset_data + member.size > file_bytes:
                return found, False
            if member.isfile() and not member.issparse():
                found.append(Packed(path, member.name, member.offset_data, member.size))
        return found, _ends(path, tar.offset)
    return found, False


def _ends(path: Path, at: int) -> bool:
    """Whether nothing but an end mark follows: a block of zeros in the middle is damage, and not the end."""
    with path.open("rb") as file:
        file.seek(at)
        mark = file.read(tarfile.BLOCKSIZE)
        return mark == bytes(tarfile.BLOCKSIZE) and not any(any(rest) for rest in iter(lambda: file.read(1 << 16), b""))
