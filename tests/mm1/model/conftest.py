"""Small models and batches that the tests of the model share; real classes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mm1.batch import IMAGE, Batch, targets_of
from mm1.model.build import build
from mm1.model.mm1 import MM1

ROOT = Path(__file__).resolve().parents[3]
PX, TOKENS, VOCABULARY = 32, 4, 64


@pytest.fixture(scope="session")
def model_configs() -> Path:
    """Folder of the YAMLs."""
    return ROOT / "configs" / "model"


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """A model of 50 thousand parameters: 2 layers, 32 px, 4 tokens a picture; ``experts`` make the 2nd layer sparse."""

    def make(experts: int = 0, connector: str = "CAbstractor", **decoder: Any) -> dict[str, Any]:
        value = yaml.safe_load((ROOT / "configs" / "model" / "tiny_moe.yaml").read_text())
        parts = value["init_args"]
        parts["vision"]["init_args"] |= {"image_px": PX, "width": 32, "layers": 2, "heads": 2}
        parts["connector"] = {"class_path": f"mm1.model.connector.{connector}", "init_args": {"tokens": TOKENS}}
        if connector == "CAbstractor":
            parts["connector"]["init_args"] |= {"width": 32, "depth": 1}
        small = {"vocabulary": VOCABULARY, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}
        parts["decoder"]["init_args"] |= small | decoder
        if experts:
            parts["decoder"]["init_args"]["moe"]["init_args"]["experts"] = experts
        else:
            del parts["decoder"]["init_args"]["moe"]
        return value

    return make


@pytest.fixture
def model(config: Callable[..., dict[str, Any]]) -> Callable[..., MM1]:
    """The same, built and filled."""

    def make(seed: int = 0, **changes: Any) -> MM1:
        built = build(config(**changes))
        built.to_empty(device="cpu")
        built.init_weights(seed)
        return built

    return make


def document(pictures: int, text: int, generator: torch.Generator) -> torch.Tensor:
    """Tokens of a document: each picture in front of its share of the text."""
    places = torch.full((TOKENS,), IMAGE)
    words = torch.randint(3, VOCABULARY, (text,), generator=generator)
    parts = [torch.cat((places, part)) for part in words.chunk(pictures)] if pictures else [words]
    return torch.cat(parts)


def pack(rows: list[list[torch.Tensor]], row_tokens: int, seed: int) -> Batch:
    """Rows of documents, padded to ``row_tokens``, with random pictures and two sources."""
    tokens = torch.zeros(len(rows), row_tokens, dtype=torch.int64)
    segments, positions, sources = tokens.clone(), tokens.clone(), tokens.clone()
    for row, documents in enumerate(rows):
        end = 0
        for index, part in enumerate(documents):
            place = slice(end, end := end + len(part))
            tokens[row, place], segments[row, place] = part, index + 1
            positions[row, place], sources[row, place] = torch.arange(len(part)), index % 2
    images = int((tokens == IMAGE).sum()) // TOKENS
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (images, 3, PX, PX), dtype=torch.uint8, generator=generator)
    targets = targets_of(tokens, segments, torch.ones_like(tokens, dtype=torch.bool))
    return Batch(tokens, targets, segments, positions, sources, pictures, sources=("captions", "text"))


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """A batch of rows that hold a document with two pictures, one with none, one with one, and padding."""

    def make(rows: int = 2, pictures: bool = True, seed: int = 0) -> Batch:
        g = torch.Generator().manual_seed(seed)
        some = 1 if pictures else 0
        packed = [[document(2 * some, 9 + row % 3, g), document(0, 7, g), document(some, 5, g)] for row in range(rows)]
        return pack(packed, 40, seed)

    return make


@pytest.fixture
def packed() -> Callable[[list[list[torch.Tensor]], int, int], Batch]:
    """:func:`pack`, for tests that bring their own documents."""
    return pack


@pytest.fixture
def documents() -> list[torch.Tensor]:
    """Four documents: with two pictures, none, one, none."""
    g = torch.Generator().manual_seed(3)
    return [document(2, 8, g), document(0, 6, g), document(1, 5, g), document(0, 4, g)]
