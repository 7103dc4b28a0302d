"""A small corpus for tests: drawn squares and what can be said of them, through the real tokenizer and shards."""

from __future__ import annotations

import io
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import pytest
import yaml
from hypothesis import settings

# Without a GPU, Triton's kernels run in its interpreter; it has to be told before anything imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from mm1.data.encode import text_tokens
from mm1.data.shards import FORMAT, ShardWriter
from mm1.data.tokenizer import Tokenizer, train
from mm1.runs import Run, write_json
from mm1.sample import Image, Sample, Text
from mm1.template import turn

settings.register_profile("mm1", derandomize=True, deadline=None)  # what fails, fails every time and for everybody
settings.load_profile("mm1")

# A shell that starts tests in the background has them ignore Ctrl-C; those about Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
    settings: dict[str, Any] = {
        "row_tokens": ROW_TOKENS,
        "tokens_per_image": IMAGE_TOKENS,
        "images_per_row": 4,
        "image_px": IMAGE_PX,
    }
    settings |= {"resize": "squash", "interpolation": "bicubic", "keep_pictures": False}
    manifest = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, **settings, "streams": streams}
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


def tiny_model(experts: int = 0, width: int = 32) -> dict[str, Any]:
    """The class-path tree of a model that fits the small corpora, dense or with experts in its second layer."""
    moe = {"class_path": "mm1.model.moe.layer.MoE", "init_args": {"experts": experts, "top_k": 2}} if experts else None
    vision = {"name": "vit_tiny_patch16_224", "image_px": IMAGE_PX, "patch_px": 7, "resize": "squash"}
    decoder = {"vocabulary": VOCABULARY, "width": width, "layers": 2, "heads": 2, "ffn_width": 64, "tied": True}
    parts = {
        "vision": ("vision.Timm", {**vision, "width": 32, "layers": 1, "heads": 2}),
        "connector": ("connector.CAbstractor", {"tokens": IMAGE_TOKENS, "width": 32, "depth": 1}),
        "decoder": ("decoder.Decoder", {**decoder, "moe": moe}),
    }
    tree = {part: {"class_path": f"mm1.model.{name}", "init_args": args} for part, (name, args) in parts.items()}
    return {"class_path": "mm1.model.mm1.MM1", "init_args": tree}


def run_config(corpus: Path, experts: int = 0, **trainer: Any) -> dict[str, Any]:
    """A run of a dozen steps on a small corpus, as its YAML would say it."""
    data = {"corpus": str(corpus), "row_tokens": ROW_TOKENS, "images_per_row": 5, "rows_per_step": 4, "workers": 0}
    return {
        "model": {"model": tiny_model(experts), "optimizer": {"lr": 3e-3, "warmup_steps": 4}},
        "data": data,
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 12, "log_every_n_steps": 2, **trainer},
        "validate_every_n_steps": 4,
        "save_every_n_steps": 3,
        "threads": 1,
    }


def fit(folder: Path, config: dict[str, Any], *flags: str) -> Run:
    """``mm1-train fit`` of ``config`` into ``folder``, in this process."""
    from mm1.train.__main__ import Door

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"given-{os.getpid()}.yaml"  # each rank its own
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    Door(["fit", "--config", str(path), "--run", str(folder), *flags])
    return Run(folder)
