"""Bringing documents that may be alike together without ever holding all of them (banded keys, one shuffle).

    parts      every document gives a few keys; a row is (key, number of the document, sketch)
    buckets    rows go to the bucket of their key, on disk or through the cluster's shuffle
    groups     in a bucket, rows of one key stand together; of those that are alike the first document stays
    losers     the numbers of the others, by part

A document is lost if it is like an earlier one in any of its groups. Numbers are (part, place in the part), so what is
lost does not depend on how many processes looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from data_pipelines.parts import Part, Tally, Walk
from data_pipelines.sources.base import Draft
from data_pipelines.steps import Alike
from mm1.data.image import PictureError

PART_BITS = 32  # a document's number is part << 32 | place
FIRSTS = 64  # of a group that shares a key by chance, so many different documents are compared with the rest


@dataclass(frozen=True)
class Keys:
    """Writes the rows of a part into buckets.

    Args:
        walk: The steps before, whose documents are compared.
        step: What compares them.
        folder: Where buckets are.
        buckets: How many.
    """

    walk: Walk
    step: Alike
    folder: Path
    buckets: int

    def __call__(self, part: Part) -> int:
        """Write them, unless they are there; returns how many rows."""
        done = self.folder / f"{part.number:06d}.done"
        if done.exists():
            return int(done.read_text())
        rows = list(self.rows(part))
        if rows:
            table = packed(rows)
            bucket = table["key"] % self.buckets
            for number in numpy.unique(bucket):
                path = self.folder / f"{number:05d}" / f"{part.number:06d}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                numpy.save(path, table[bucket == number])
        self.folder.mkdir(parents=True, exist_ok=True)
        done.write_text(str(len(rows)))
        return len(rows)

    def rows(self, part: Part) -> Iterator[tuple[int, int, bytes]]:
        """Key, document and sketch of every document of a part that the steps before let through."""
        for place, draft, pictures in self.walk.documents(part, Tally()):
            if isinstance(draft, Draft):
                try:
                    keys = self.step.keys(draft, pictures)
                    sketch = self.step.sketch(draft, pictures) if len(keys) else b""
                except PictureError:
                    continue  # counted when the document is written
                number = part.number << PART_BITS | place
                yield from ((int(key), number, sketch) for key in keys)


def packed(rows: Iterable[tuple[int, int, bytes]]) -> numpy.ndarray:
    """Rows as one table; sketches of a step are all of one length."""
    rows = list(rows)
    kind = [("key", numpy.uint64), ("document", numpy.uint64), ("sketch", f"V{max(1, len(rows[0][2]))}")]
    return numpy.array(rows, dtype=kind)


@dataclass(frozen=True)
class Losers:
    """Finds in a bucket the documents that are like an earlier one.

    Args:
        step: What compares them.
    """

    step: Alike

    def __call__(self, bucket: Path) -> numpy.ndarray:
        """uint64[N]: their numbers."""
        return self.of(numpy.concatenate([numpy.load(path) for path in sorted(bucket.glob("*.npy"))]))

    def of(self, table: numpy.ndarray) -> numpy.ndarray:
        """The same for a table of rows."""
        table = numpy.sort(table, order=["key", "document"])
        starts = numpy.flatnonzero(numpy.r_[True, table["key"][1:] != table["key"][:-1]])
        sizes = numpy.diff(numpy.r_[starts, len(table)])
        lost: set[int] = set()
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            lost.update(self._group(table[start : start + size]))
        return numpy.array(sorted(lost), dtype=numpy.uint64)

    def _group(self, rows: numpy.ndarray) -> Iterator[int]:
        numbers, sketches = rows["document"].tolist(), [bytes(sketch) for sketch in rows["sketch"]]
        for _ in range(FIRSTS):
            if len(numbers) < 2:
                return
            same = self.step.alike(sketches[0], sketches[1:])
            yield from (number for number, like in zip(numbers[1:], same, strict=True) if like and number != numbers[0])
            rest = [place for place, like in enumerate(same, start=1) if not like]
            numbers, sketches = [numbers[place] for place in rest], [sketches[place] for place in rest]


def by_part(losers: Iterable[numpy.ndarray]) -> dict[int, numpy.ndarray]:
    """Places of the lost documents, by part."""
    numbers = numpy.unique(numpy.concatenate([numpy.zeros(0, dtype=numpy.uint64), *losers]))
    parts, places = numbers >> numpy.uint64(PART_BITS), numbers & numpy.uint64(2**PART_BITS - 1)
    return {int(part): places[parts == part].astype(numpy.int64) for part in numpy.unique(parts)}
