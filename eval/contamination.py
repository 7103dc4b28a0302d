"""Whether a corpus holds pictures that are scored, whatever their files are called: by content and by perceptual hash.

``mm1-data shards`` leaves such pictures out. This reads what came of it, picture by picture, so that a report can say
0 because it was counted and not because it was meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.pictures import read
from eval.task import Task
from mm1.data.fingerprint import Fingerprint, Known, fingerprint
from mm1.data.image import decode, scale
from mm1.data.shards import ShardSet, read_manifest
from mm1.sample import Image

AT_ONCE = 256  # pictures held for the threads


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training corpora and benchmarks share.

    Args:
        scored: Pictures of the benchmarks that were looked for.
        trained: Pictures of the corpora, equal files counted once.
        found: For each of them that is scored: the document's id, its corpus, stream and split.
    """

    scored: int
    trained: int
    found: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As ``scores.json`` keeps it."""
        return {"pictures": len(self.found), "scored": self.scored, "trained": self.trained, "found": self.found[:10]}

    def __str__(self) -> str:
        where = f": {', '.join(self.found[:3])}" * bool(self.found)
        return f"{len(self.found)} of {self.trained} pictures to train on are among {self.scored} scored ones{where}"


def overlap(corpora: list[Path], tasks: list[Task]) -> Overlap:
    """Look for every picture that ``tasks`` ask about in every stream and split of corpora.

    Raises:
        UserError: A corpus or a scored picture cannot be read.
    """
    manifests = [read_manifest(corpus) for corpus in corpora]
    paths = list(dict.fromkeys(path for task in tasks for query in task.whole for path in query.pictures))
    found: list[str] = []
    seen: set[bytes] = set()
    with ThreadPoolExecutor() as threads:
        known = Known(one for some in threads.map(lambda path: _looks(read(path), manifests), paths) for one in some)
        for corpus, manifest in zip(corpora, manifests, strict=True):
            for batch in _batches(_pictures(corpus, manifest["streams"], seen)):
                prints = threads.map(lambda entry: fingerprint(entry[1], decode(entry[1])), batch)
                found += [where for (where, _), one in zip(batch, prints, strict=True) if one in known]
    return Overlap(len(paths), len(seen), tuple(found))


def _looks(data: bytes, manifests: list[dict[str, Any]]) -> Iterator[Fingerprint]:
    """A scored picture as it is, and as each corpus would hold it: cut to its centre it looks different."""
    picture = decode(data)
    yield fingerprint(data, picture)
    for about in manifests:
        yield fingerprint(data, scale(picture, about["image_px"], about["resize"], about["interpolation"]))


def _pictures(corpus: Path, streams: Iterable[str], seen: set[bytes]) -> Iterator[tuple[str, bytes]]:
    """Pictures not ``seen`` yet, each with where it stands."""
    for stream in streams:
        for split in ("train", "val"):
            shards = ShardSet(corpus, stream, split)
            for sample in (shards[at] for at in range(len(shards)) if shards.sizes(at)[1]):
                for item in sample.items:
                    if isinstance(item, Image) and (name := hashlib.sha256(item.data).digest()) not in seen:
                        seen.add(name)
                        yield f"{sample.id} in {corpus}/{stream}/{split}", item.data


def _batches(entries: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    yield batch
