"""Shards: ordinary webdataset tars with an index beside each, so that sample i costs two or three ``os.pread``.

    CORPUS/captions/train-000000.tar           000000000.0.jpg  000000000.json  000000001.0.jpg  ...
    CORPUS/captions/train-000000.index.json    for each sample: text tokens, pictures, offset and size of each member

The index lets packing know every document's length without opening a tar; the manifest names the shards and their
checksums. The only address of webdataset.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from mm1.errors import UserError
from mm1.runs import read_object, write_json
from mm1.sample import Image, Sample, Text

FORMAT = 1
AGAIN = "write it again with mm1-data shards"
DAMAGED = f"delete it, then {AGAIN}"  # a rerun does not look inside what has its size
OPEN_FILES = 64


def read_manifest(corpus: str | Path) -> dict[str, Any]:
    """The manifest of a finished corpus.

    Raises:
        UserError: No corpus, or one of another format.
    """
    path = Path(corpus) / "manifest.json"
    manifest = read_object(path, "a corpus written by mm1-data shards")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')}; this version reads format {FORMAT}: {AGAIN}")
    return manifest


def read_index(path: Path, shard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The samples of a shard, as the index beside it lists them.

    Args:
        path: The tar.
        shard: What the manifest records of it.

    Raises:
        UserError: The shard or its index is missing, of another format or cut short.
    """
    if not path.exists():
        raise UserError(f"{path} is missing though the manifest names it: {AGAIN}")
    if path.stat().st_size != shard["bytes"]:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {shard['bytes']}; it was cut short: {AGAIN}"
        )
    where = path.with_suffix(".index.json")
    index = read_object(where, f"the index of {path.name}; {AGAIN}")
    if index.get("format") != FORMAT:
        raise UserError(f"{where} has format {index.get('format')}; this version reads format {FORMAT}: {AGAIN}")
    if len(index.get("samples", ())) != shard["samples"]:
        raise UserError(f"{where} does not list the {shard['samples']} samples that the manifest says: {AGAIN}")
    return index["samples"]


class ShardSet:
    """All samples of one split of one stream, by number. Cheap to copy into worker processes.

    Args:
        corpus: Folder that ``mm1-data shards`` wrote.
        stream: ``captions``, ``interleaved``, ``text`` or ``sft``.
        split: ``train`` or ``val``. An empty split is legal.

    Raises:
        UserError: A stream that is not there; a shard or its index is missing, of another format or cut short.
    """

    def __init__(self, corpus: str | Path, stream: str, split: str) -> None:
        corpus = Path(corpus)
        streams = read_manifest(corpus)["streams"]
        if stream not in streams:
            raise UserError(f"{corpus} has no stream '{stream}'; it has {', '.join(streams) or 'none'}")
        if split not in ("train", "val"):
            raise UserError(f"there is no split '{split}'; expected train or val")
        self.shards: list[dict[str, Any]] = streams[stream][split]["shards"]
        self.paths = [corpus / stream / shard["file"] for shard in self.shards]
        self._open: dict[int, int] = {}
        texts: list[int] = []
        images: list[int] = []
        places: list[int] = []
        extents: list[list[int]] = []
        for number, path in enumerate(self.paths):
            for sample in read_index(path, self.shards[number]):
                members = dict(sample["members"])
                extents += [members.pop("json"), *members.values()]
                texts.append(sample["text_tokens"])
                images.append(sample["images"])
                places.append(number)
        self._texts, self._images, self._places = (numpy.array(v, dtype=numpy.int64) for v in (texts, images, places))
        self._extents = numpy.array(extents, dtype=numpy.int64).reshape(-1, 2)
        self._first = numpy.cumsum(self._images + 1) - (self._images + 1)

    def __len__(self) -> int:
        return len(self._texts)

    def sizes(self, i: int) -> tuple[int, int]:
        """Text tokens (begin and end among them) and pictures of sample ``i``; positions are text + pictures x N."""
        return int(self._texts[i]), int(self._images[i])

    def path(self, i: int) -> Path:
        """The tar that sample ``i`` is in."""
        return self.paths[self._places[i]]

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(i)
        first = self._first[i]
        document, *pictures = (
            self._read(int(self._places[i]), int(offset), int(size))
            for offset, size in self._extents[first : first + self._images[i] + 1]
        )
        try:
            return _sample(json.loads(document), pictures)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"sample {i} of {self.path(i)} is damaged ({why:.80}): {DAMAGED}") from None

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._open:
            while len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
        data = os.pread(self._open[shard], size, offset)
        if len(data) != size:
            raise UserError(f"{self.paths[shard]} ends inside a sample; it was cut short: {AGAIN}")
        return data

    def verify(self) -> None:
        """Read every shard and compare checksums.

        Raises:
            UserError: The first shard that is not what was written.
        """
        for path, shard in zip(self.paths, self.shards, strict=True):
            if (found := _sha256(path)) != shard["sha256"]:
                raise UserError(
                    f"{path} has checksum {found[:12]}, the manifest says {shard['sha256'][:12]}: {DAMAGED}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


class ShardWriter:
    """Write the shards of one split, each under a temporary name until it is whole.

    Args:
        folder: ``CORPUS/<stream>``.
        split: ``train`` or ``val``.
        shard_bytes: A shard is closed once it is this large.

    Use as a context; ``shards`` then lists what the manifest records: file, samples, bytes, sha256.
    """

    def __init__(self, folder: Path, split: str, *, shard_bytes: int = 256_000_000) -> None:
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self.shards: list[dict[str, Any]] = []
        self._sizes: list[tuple[int, int]] = []
        self._tar: Any = None
        self._key = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, sample: Sample, text_tokens: int) -> None:
        """Append a sample, with the length that its encoding has."""
        import webdataset  # costs a second that readers need not pay

        if self._tar is None:
            self._path = self.folder / f"{self.split}-{len(self.shards):06d}.tar"
            self._file = self._path.with_suffix(".tar.tmp").open("wb")
            self._tar = webdataset.TarWriter(self._file, mtime=0)
        self._tar.write({"__key__": f"{self._key:09d}", **_members(sample)})
        self._key += 1
        self._sizes.append((text_tokens, sample.images))
        if self._file.tell() >= self.shard_bytes:
            self._finish()

    def _finish(self) -> None:
        self._tar.close()
        self._file.close()
        temporary = Path(self._file.name)
        samples = [
            {"key": key, "text_tokens": text, "images": images, "members": members}
            for (key, members), (text, images) in zip(_offsets(temporary).items(), self._sizes, strict=True)
        ]
        shard = {
            "file": self._path.name,
            "samples": len(samples),
            "bytes": temporary.stat().st_size,
            "sha256": _sha256(temporary),
        }
        write_json(self._path.with_suffix(".index.json"), {"format": FORMAT, **shard, "samples": samples})
        os.replace(temporary, self._path)
        self.shards.append(shard)
        self._tar, self._sizes = None, []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self._tar is not None and failed is None:
            self._finish()
        elif self._tar is not None:
            self._tar.close()
            self._file.close()
            Path(self._file.name).unlink()


def _members(sample: Sample) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    members: dict[str, Any] = {}
    for item in sample.items:
        if isinstance(item, Image):
            name = f"{len(members)}.{_extension(item.data)}"
            members[name] = item.data
            items.append({"image": name})
        else:
            spaced = {"after_space": True} if item.after_space else {}
            items.append({"text": item.text, "learn": item.learn, "end": item.end, **spaced})
    document = {"id": sample.id, "source": sample.source, "items": items}
    return {**members, "json": json.dumps(document, ensure_ascii=False).encode()}


def _sample(document: dict[str, Any], pictures: list[bytes]) -> Sample:
    remaining = iter(pictures)
    items = tuple(Image(next(remaining)) if "image" in item else Text(**item) for item in document["items"])
    return Sample(items, document["source"], document["id"])


def _extension(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[8:12] == b"WEBP" else "jpg"


def _offsets(path: Path) -> dict[str, dict[str, list[int]]]:
    """For each key of a tar, offset and size of its members: json first, then the pictures by number."""
    found: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, name = member.name.split(".", 1)
            found.setdefault(key, {})[name] = [member.offset_data, member.size]

    def order(name: str) -> int:
        return -1 if name == "json" else int(name.split(".")[0])

    return {key: {name: members[name] for name in sorted(members, key=order)} for key, members in found.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
