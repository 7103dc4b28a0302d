"""Tiny files of the web's corpora, each written as its publisher writes it, for the tests of their readers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import zstandard

from data_pipelines.sources import Draft, Rejection, Source
from mm1.sample import Text
from tests.data_pipelines.conftest import photo


def jpeg(seed: int) -> bytes:
    """The bytes of ``photo(seed)``."""
    file = io.BytesIO()
    photo(seed).save(file, "JPEG")
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def json_lines(rows: Iterable[Any]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def packed(name: str, data: bytes) -> bytes:
    """Data packed as the ending of a name says."""
    if name.endswith(".gz"):
        return gzip.compress(data)
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor().compress(data)
    if name.endswith(".zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name.removesuffix(".zip"), data)
        return file.getvalue()
    return data


def parquet(rows: list[dict[str, Any]], group: int = 2) -> bytes:
    """Rows as parquet, in groups of a few."""
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, file, row_group_size=group, write_page_checksum=True)
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """A tar of these files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file.getvalue()


def tiff(seeds: Iterable[int]) -> bytes:
    """A TIFF with a page for each seed."""
    first, *others = [photo(seed) for seed in seeds]
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others, compression="tiff_lzw")
    return file.getvalue()


def mmc4_row(n: int, **changes: Any) -> dict[str, Any]:
    """A document of four sentences and three pictures, the first most like sentence 2, the others like 0."""
    names = [f"{n}-{k}.png" for k in range(3)]
    indices, likes = (2, 0, 3), (0.31, 0.28, 0.2)
    info = [
        {"image_name": name, "raw_url": f"http://x/{name}", "matched_text_index": index, "matched_sim": like}
        for name, index, like in zip(names, indices, likes, strict=True)
    ]
    return {
        "url": f"http://x/{n}",
        "text_list": [f"First of {n}.", "Second.", "Third.", "Fourth."],
        "image_info": [{**one, "face_detections": None} for one in info],
        "similarity_matrix": [[0.1, 0.2, 0.31, 0.1], [0.28, 0.1, 0.1, 0.15], [0.26, 0.1, 0.1, 0.2]],
        "could_have_url_duplicate": 0,
        **changes,
    }


def with_base64(row: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A row of OpenFlamingo's tars: all but the last picture could be had."""
    info = [
        {**one, "image_base64": base64.b64encode(jpeg(seed + k)).decode()} for k, one in enumerate(row["image_info"])
    ]
    info[-1]["image_base64"] = None
    return {**row, "image_info": info}


def read(source: Source) -> tuple[list[Draft], dict[str, list[str]]]:
    """Drafts, and ids by reason, of what a source reads; what documents lost is among the reasons."""
    drafts, reasons = [], {}
    for found in source.drafts():
        lost = [found] if isinstance(found, Rejection) else found.lost
        drafts += [found] if isinstance(found, Draft) else []
        for rejection in lost:
            reasons.setdefault(rejection.reason, []).append(rejection.id)
    return drafts, reasons


def spelled(draft: Draft) -> list[str]:
    """Items as words: text, and the names of pictures in angle brackets."""
    return [item.text if isinstance(item, Text) else f"<{item.name}>" for item in draft.items]


def stretched(source: Source, path: Path, rows: int) -> list[Any]:
    """What a source makes of all stretches of a file, one after the other."""
    return [found for span in source.spans(path, rows) for found in source.drafts_in(path, span)]


def size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture."""
    return PIL.Image.open(io.BytesIO(data)).size
