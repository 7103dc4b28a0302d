"""A small corpus for tests: drawn squares and what can be said of them, through the real tokenizer and shards."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest

from mm1.data.encode import text_tokens
from mm1.data.shards import ShardWriter
from mm1.data.tokenizer import Tokenizer, train
from mm1.runs import write_json
from mm1.sample import Image, Sample, Text
from mm1.template import turn

COLOURS = ("red", "green", "blue", "black", "yellow")
ROW_TOKENS, IMAGE_TOKENS, IMAGE_PX, VOCABULARY = 96, 4, 28, 340


def picture(colour: str, seed: int) -> bytes:
    """A square of ``colour`` somewhere on white, as PNG."""
    chance = random.Random(seed)
    canvas = PIL.Image.new("RGB", (IMAGE_PX, IMAGE_PX), "white")
    left, top = chance.randrange(14), chance.randrange(14)
    PIL.ImageDraw.Draw(canvas).rectangle((left, top, left + 12, top + 12), fill=colour)
    data = io.BytesIO()
    canvas.save(data, "PNG")
    return data.getvalue()


def document(stream: str, number: int) -> Sample:
    """One document of a stream; the length varies with the number."""
    chance = random.Random(f"{stream} {number}")
    colours = [chance.choice(COLOURS) for _ in range(1 + number % 3)]
    images = [Image(picture(colour, number * 7 + i)) for i, colour in enumerate(colours)]
    sentences = " ".join(f"the {chance.choice(COLOURS)} square is near." for _ in range(1 + number % 4))
    match stream:
        case "captions":
            items = (images[0], Text(f"a {colours[0]} square"))
        case "interleaved":
            items = tuple(item for i, c in zip(images, colours, strict=True) for item in (i, Text(f"here is {c}. ")))
        case "text":
            items = (Text(sentences),)
        case "sft":
            items = (images[0], *turn("which colour is it?", colours[0]))
    return Sample(items, stream, f"{number:04d}")


def write_corpus(folder: Path, **documents: int) -> Path:
    """Write a corpus with so many training documents a stream, and a quarter as many to validate on."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [item for stream in ("captions", "text", "sft") for n in range(40) for item in document(stream, n).items]
    lines = [item.text for item in written if isinstance(item, Text)]
    (folder / "tokenizer.model").write_bytes(train(lines, VOCABULARY))
    tokenizer = Tokenizer(folder / "tokenizer.model")
    streams = {}
    for stream, count in documents.items():
        streams[stream] = {}
        for split, numbers in {"train": range(count), "val": range(count, count + max(2, count // 4))}.items():
            with ShardWriter(folder / stream, split) as writer:
                for sample in (document(stream, number) for number in numbers):
                    writer.write(sample, text_tokens(sample.items, tokenizer))
            streams[stream][split] = {"documents": len(numbers), "pieces": len(numbers), "shards": writer.shards}
    settings = {"row_tokens": ROW_TOKENS, "tokens_per_image": IMAGE_TOKENS, "images_per_row": 4, "image_px": IMAGE_PX}
    manifest = {"format": 1, "tokenizer": tokenizer.fingerprint, "resize": "squash", **settings, "streams": streams}
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="session")
def make_corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_corpus(captions=40, text=20)`` writes a corpus and gives its folder; the same one for the same counts."""
    made: dict[tuple[tuple[str, int], ...], Path] = {}

    def make(**documents: int) -> Path:
        key = tuple(sorted(documents.items()))
        if key not in made:
            made[key] = write_corpus(tmp_path_factory.mktemp("corpus"), **documents)
        return made[key]

    return make


@pytest.fixture(scope="session")
def corpus(make_corpus: Callable[..., Path]) -> Path:
    """A corpus with all streams."""
    return make_corpus(captions=41, interleaved=30, text=17, sft=24)
