"""Shards: ordinary webdataset tars with an index beside each, so that sample i costs two or three ``os.pread``.

    CORPUS/captions/train-000000.tar          000000000.0.jpg  000000000.json  000000001.0.jpg  ...
    CORPUS/captions/train-000000.index.npz    lengths, checksums and places (mm1.data.index)

The index lets packing know every document's length without opening a tar, and tells a damaged sample from a whole one;
the manifest names the shards with checksums of the files. Of a sample 16 bytes are held in memory; where its members
stand is read from the index when it is asked for. The only address of webdataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy

from mm1.data.index import AGAIN, EXTENT_BYTES, FORMAT, index_path, read_index, write_index
from mm1.errors import UserError
from mm1.runs import read_object
from mm1.sample import Image, Sample, Text

DAMAGED = f"delete it, then {AGAIN}"  # a rerun does not look inside what has its size
OPEN_FILES = 64  # shards; each is two files


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


class Damaged(UserError):
    """A sample that is not what was written.

    Args:
        reason: Why, the same for all such samples, to be counted.
        told: The sentence for the user.
    """

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(told)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Damaged], tuple[str, str]]:
        return Damaged, (self.reason, str(self))


class ShardSet:
    """All samples of one split of one stream, by number. Cheap to hand to forked worker processes.

    Args:
        corpus: Folder that ``mm1-data shards`` wrote.
        stream: ``captions``, ``interleaved``, ``text`` or ``sft``.
        split: ``train`` or ``val``. An empty split is legal.

    Raises:
        UserError: A stream that is not there; a shard or its index is missing, of another format or cut short.
    """

    def __init__(self, corpus: str | Path, stream: str, split: str) -> None:
        corpus = Path(corpus)
        self.shards = _listed(corpus, stream, split)
        self.paths = [corpus / stream / shard["file"] for shard in self.shards]
        self._open: dict[int, tuple[int, int]] = {}  # descriptors of a shard and of its index
        read = [read_index(path, shard) for path, shard in zip(self.paths, self.shards, strict=True)]
        self._extents_at = [index.extents_at for index in read]
        self._starts = numpy.cumsum([0, *(len(index.images) for index in read)])
        none = numpy.zeros(0, numpy.int32)
        self.text_tokens = numpy.concatenate([none, *(index.text_tokens for index in read)])
        self.images = numpy.concatenate([none, *(index.images for index in read)])
        self._crc32 = numpy.concatenate([none.astype(numpy.uint32), *(index.crc32 for index in read)])
        firsts = [numpy.cumsum(index.images + 1, dtype=numpy.int32) - (index.images + 1) for index in read]
        self._first = numpy.concatenate([none, *firsts])  # of a sample's members within its shard

    def __len__(self) -> int:
        return len(self.images)

    def sizes(self, i: int) -> tuple[int, int]:
        """Text tokens (begin and end among them) and pictures of sample ``i``; positions are text + pictures x N."""
        return int(self.text_tokens[i]), int(self.images[i])

    def path(self, i: int) -> Path:
        """The tar that sample ``i`` is in."""
        return self.paths[self._shard(i)]

    def __getitem__(self, i: int) -> Sample:
        """Sample ``i``.

        Raises:
            Damaged: It is not what was written.
        """
        if not 0 <= i < len(self):
            raise IndexError(i)
        members = self._read(i)
        crc32 = 0
        for member in members:
            crc32 = zlib.crc32(member, crc32)
        if crc32 != self._crc32[i]:
            raise Damaged("checksum differs", f"sample {i} of {self.path(i)} is damaged (checksum differs): {DAMAGED}")
        return _sample(json.loads(members[0]), members[1:])

    def _read(self, i: int) -> list[bytes]:
        shard = self._shard(i)
        tar, index = self._descriptors(shard)
        place = self._extents_at[shard] + EXTENT_BYTES * int(self._first[i])
        extents = os.pread(index, EXTENT_BYTES * (1 + int(self.images[i])), place)
        most, members, whole = self.shards[shard]["bytes"], [], True
        for at, size in struct.iter_unpack("<qq", extents[: len(extents) // EXTENT_BYTES * EXTENT_BYTES]):
            if at < 0 or not 0 <= size <= most:  # as no index says that was whole when opened
                raise Damaged(
                    "index differs", f"{index_path(self.paths[shard])} was changed while it was read: {AGAIN}"
                )
            members.append(os.pread(tar, size, at))
            whole = whole and len(members[-1]) == size
        if not whole or len(members) <= self.images[i]:
            raise Damaged("shard is cut short", f"{self.paths[shard]} ends inside a sample; it was cut short: {AGAIN}")
        return members

    def _shard(self, i: int) -> int:
        return int(numpy.searchsorted(self._starts, i, "right")) - 1

    def _descriptors(self, shard: int) -> tuple[int, int]:
        if shard not in self._open:
            while len(self._open) >= OPEN_FILES:
                _close(self._open.pop(next(iter(self._open))))
            tar = os.open(self.paths[shard], os.O_RDONLY)
            self._open[shard] = tar, os.open(index_path(self.paths[shard]), os.O_RDONLY)
        return self._open[shard]

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
        for descriptors in getattr(self, "_open", {}).values():
            _close(descriptors)


def _listed(corpus: Path, stream: str, split: str) -> list[dict[str, Any]]:
    """What the manifest records of the shards of a stream."""
    if split not in ("train", "val"):
        raise UserError(f"there is no split '{split}'; expected train or val")
    streams = read_manifest(corpus).get("streams")
    if isinstance(streams, dict) and stream not in streams:
        raise UserError(f"{corpus} has no stream '{stream}'; it has {', '.join(streams) or 'none'}")
    try:
        shards = list(streams[stream][split]["shards"])  # type: ignore[index]
        told = all(Path(shard["file"]).name == shard["file"] for shard in shards)
        told = told and all(isinstance(shard[count], int) for shard in shards for count in ("samples", "bytes"))
    except (TypeError, LookupError):
        told = False
    if not told:
        raise UserError(f"{corpus}/manifest.json does not say what shards of {stream} there are for {split}: {AGAIN}")
    return shards


def _close(descriptors: tuple[int, int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class ShardWriter:
    """Write the shards of one split, each under a temporary name until it is whole.

    Args:
        folder: ``CORPUS/<stream>``.
        split: ``train`` or ``val``.
        part: Of a corpus written in parts, the number of this one: its shards are ``train-000003.tar``,
            ``train-000003-01.tar``, ... and its keys begin with it. Without, they are ``train-000000.tar``,
            ``train-000001.tar``, ...
        shard_bytes: A shard is closed once it is this large.

    Use as a context; ``shards`` then lists what the manifest records: file, samples, bytes, sha256.
    """

    def __init__(self, folder: Path, split: str, *, part: int | None = None, shard_bytes: int = 256_000_000) -> None:
        self.folder, self.split, self.part, self.shard_bytes = folder, split, part, shard_bytes
        self.shards: list[dict[str, Any]] = []
        self._rows: list[tuple[int, int, int]] = []  # text tokens, pictures, crc32
        self._tar: Any = None
        self._key = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, sample: Sample, text_tokens: int) -> None:
        """Append a sample, with the length that its encoding has."""
        import webdataset  # costs a second that readers need not pay

        if self._tar is None:
            self._path = self.folder / self._name()
            self._file = self._path.with_suffix(".tar.tmp").open("wb")
            self._tar = webdataset.TarWriter(self._file, mtime=0)
        document, pictures = _members(sample)
        key = f"{self._key:09d}" if self.part is None else f"{self.part:06d}-{self._key:09d}"
        self._tar.write({"__key__": key, **pictures, "json": document})
        self._key += 1
        self._rows.append((text_tokens, sample.images, zlib.crc32(b"".join([document, *pictures.values()]))))
        if self._file.tell() >= self.shard_bytes:
            self._finish()

    def _name(self) -> str:
        number = len(self.shards)
        if self.part is None:
            return f"{self.split}-{number:06d}.tar"
        return f"{self.split}-{self.part:06d}{f'-{number:02d}' if number else ''}.tar"

    def _finish(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        temporary = Path(self._file.name)
        text_tokens, images, crc32 = zip(*self._rows, strict=True)
        write_index(self._path, text_tokens=text_tokens, images=images, crc32=crc32, extents=_extents(temporary))
        size, digest = temporary.stat().st_size, _sha256(temporary)
        os.replace(temporary, self._path)
        self.shards.append({"file": self._path.name, "samples": len(images), "bytes": size, "sha256": digest})
        self._tar, self._rows = None, []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if self._tar is not None and failed is None:
                self._finish()
        finally:
            if self._tar is not None:  # no half shard stays behind
                for file in (self._tar, self._file):  # an open one would keep its space
                    with contextlib.suppress(OSError):  # of a full disk
                        file.close()
                Path(self._file.name).unlink(missing_ok=True)


def _members(sample: Sample) -> tuple[bytes, dict[str, bytes]]:
    items: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    for item in sample.items:
        if isinstance(item, Image):
            name = f"{len(pictures)}.{_extension(item.data)}"
            pictures[name] = item.data
            items.append({"image": name})
        else:
            spaced = {"after_space": True} if item.after_space else {}
            items.append({"text": item.text, "learn": item.learn, "end": item.end, **spaced})
    document = {"id": sample.id, "source": sample.source, "items": items}
    return json.dumps(document, ensure_ascii=False).encode(), pictures


def _sample(document: dict[str, Any], pictures: list[bytes]) -> Sample:
    remaining = iter(pictures)
    items = tuple(Image(next(remaining)) if "image" in item else Text(**item) for item in document["items"])
    return Sample(items, document["source"], document["id"])


def _extension(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[8:12] == b"WEBP" else "jpg"


def _extents(path: Path) -> list[tuple[int, int]]:
    """Offset and size of every member of a tar, sample by sample: json first, then the pictures by number."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, name = member.name.split(".", 1)
            number = -1 if name == "json" else int(name.split(".")[0])
            found.setdefault(key, {})[number] = (member.offset_data, member.size)
    return [members[number] for members in found.values() for number in sorted(members)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
