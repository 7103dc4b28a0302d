"""The index of a shard: every sample's lengths, checksum and place, in one uncompressed ``.npz`` beside the tar.

    format        2
    text_tokens   int32[samples]       begin and end tokens among them
    images        int32[samples]       pictures
    crc32         uint32[samples]      of a sample's document and pictures, one after the other
    extents       int64[members, 2]    offset and size in the tar, of each sample's document and then of its pictures

A million samples load in a few hundredths of a second. Extents are not held in memory: being uncompressed, the file
itself answers for one sample with one ``os.pread``.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from mm1.errors import UserError

FORMAT = 2
AGAIN = "write it again with mm1-data shards"
EXTENT_BYTES = 16


def index_path(tar: Path) -> Path:
    """Where the index of a shard stands."""
    return tar.with_suffix(".index.npz")


@dataclass(frozen=True)
class Index:
    """What is known of a shard's samples without opening it.

    Args:
        text_tokens: int32[samples]; begin and end tokens among them.
        images: int32[samples]; pictures.
        crc32: uint32[samples]; of the sample's document and pictures, one after the other.
        extents_at: Byte of the index file at which int64[members, 2] begins: offset and size of each sample's document
            and then of its pictures.
    """

    text_tokens: numpy.ndarray
    images: numpy.ndarray
    crc32: numpy.ndarray
    extents_at: int


def read_index(path: Path, shard: Mapping[str, Any]) -> Index:
    """The index beside a shard.

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
    where = index_path(path)
    if not where.exists():
        raise UserError(f"{where} does not exist; expected the index of {path.name}; {AGAIN}")
    try:
        with numpy.load(where) as arrays:  # which compares the checksums of the file's members
            found, extents = int(arrays["format"]), arrays["extents"]
            index = Index(arrays["text_tokens"], arrays["images"], arrays["crc32"], _place(where, "extents"))
            if not all(isinstance(a, numpy.ndarray) for a in (extents, index.text_tokens, index.images, index.crc32)):
                raise ValueError("members are no arrays")
    except Exception as error:  # numpy and zipfile raise whatever a broken file makes them raise
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{where} is not readable as the index of {path.name} ({told:.80}): {AGAIN}") from None
    if found != FORMAT:
        raise UserError(f"{where} has format {found}; this version reads format {FORMAT}: {AGAIN}")
    members = (shard["samples"] + int(index.images.sum()), 2)
    if {a.shape for a in (index.text_tokens, index.images, index.crc32)} != {(shard["samples"],)} or (
        extents.shape != members or extents.dtype != numpy.int64
    ):
        raise UserError(f"{where} does not list the {shard['samples']} samples that the manifest says: {AGAIN}")
    return index


def _place(path: Path, name: str) -> int:
    """The byte at which an array of an uncompressed ``.npz`` begins."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(f"{name}.npy")
        file.seek(member.header_offset + 26)
        file.seek(member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
        numpy.lib.format.read_magic(file)
        numpy.lib.format.read_array_header_1_0(file)
        return file.tell()


def write_index(
    tar: Path,
    *,
    text_tokens: Sequence[int],
    images: Sequence[int],
    crc32: Sequence[int],
    extents: Sequence[tuple[int, int]],
) -> None:
    """Write the index beside a tar, whole or not at all."""
    path = index_path(tar)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            numpy.savez(
                file,
                format=FORMAT,
                text_tokens=numpy.array(text_tokens, numpy.int32),
                images=numpy.array(images, numpy.int32),
                crc32=numpy.array(crc32, numpy.uint32),
                extents=numpy.array(extents, numpy.int64),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
