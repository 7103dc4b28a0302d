"""A raw corpus of a few pictures and sentences, every kind of file among them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest

from data_pipelines.train_tokenizer import train_tokenizer


def photo(seed: int, width: int = 60, height: int = 40) -> PIL.Image.Image:
    """A picture of soft blobs, another one for each seed."""
    coarse = numpy.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=numpy.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def save(path: Path, seed: int) -> str:
    """Save ``photo(seed)`` and give its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    photo(seed).save(data, "JPEG", quality=95)
    path.write_bytes(data.getvalue())
    return path.name


def json_lines(path: Path, rows: list[Any]) -> None:
    """Write rows; a row that is bytes goes in as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))


def write_raw(folder: Path, documents: int = 24) -> Path:
    """A sound raw corpus with all streams, a held-out file, and scored sets that share no picture with it."""
    captions = [
        {
            "image": "images/" + save(folder / f"captions/images/c{n}.jpg", n),
            "captions": [f"caption {n}.", f"again {n}."],
        }
        for n in range(documents)
    ]
    json_lines(folder / "captions/train.jsonl", captions)
    json_lines(folder / "captions/photos_dev.jsonl", captions[:3])
    interleaved = []
    for n in range(documents):
        pictures = [save(folder / f"interleaved/images/i{n}-{k}.jpg", 1000 + 10 * n + k) for k in range(2)]
        items = [{"type": "text", "text": f"Document {n} begins."}]
        for name in pictures:
            items += [
                {"type": "image", "image": f"images/{name}"},
                {"type": "text", "text": f"Figure of {name}. More."},
            ]
        interleaved.append({"id": f"doc{n}", "items": items})
    json_lines(folder / "interleaved/docs.jsonl", interleaved)
    json_lines(folder / "text/lines.jsonl", [{"text": f"Plain text number {n}."} for n in range(documents)])
    (folder / "text/book.txt").write_text(
        "\n\n".join(f"Paragraph {n} of the book.\nIts second line." for n in range(9))
    )
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A blob."}]
    sft: list[dict[str, Any]] = [
        {"id": f"s{n}", "image": f"captions/images/c{n}.jpg", "conversations": turns} for n in range(documents)
    ]
    sft.append({"id": "words", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]})
    (folder / "sft").mkdir()
    (folder / "sft/turns.json").write_text(json.dumps(sft))
    save(folder / "captions_eval/images/e0.jpg", 5000)
    coco = {"images": [{"id": 1, "path": "images/e0.jpg"}], "annotations": []}
    (folder / "captions_eval/photos.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw corpus folder of this test's own."""
    return write_raw(tmp_path / "raw")


@pytest.fixture
def out(raw: Path, tmp_path: Path) -> Path:
    """A corpus folder with a tokenizer trained on ``raw``."""
    train_tokenizer(raw, tmp_path / "corpus", 330)
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def writers() -> dict[str, Callable[..., Any]]:
    """``save`` and ``json_lines``, for tests that add files of their own."""
    return {"save": save, "json_lines": json_lines}
