"""Tiny random models with every kind of tokenizer, as they lie in folders for transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import torch
import yaml

from mm1.data.tokenizer import Tokenizer, from_hf, grow, train
from mm1.model.build import build
from mm1.model.mm1 import MM1
from tests.conftest import tiny_model
from tests.mm1.data import hf_folders

LINES = ["User: what is this?", "Assistant: a red square on the left", "one two three"] * 20
UNLIKE_LLAMA = {"head_width": 12, "kv_heads": 1, "qk_norm": "head", "attention_bias": "qkv", "window_tokens": 7}


def tokenizer(kind: str, folder: Path, grown: bool = True) -> Tokenizer:
    """``sentencepiece``, or one of :data:`tests.mm1.data.hf_folders.KINDS`, with a token for pictures or without."""
    proto = train(LINES, 310) if kind == "sentencepiece" else from_hf(hf_folders.write(kind, folder))
    return Tokenizer.from_bytes(grow(proto) if grown else proto)


def checkpoint(path: Path, tokenizer: Tokenizer, experts: int = 0, padding: int = 0, **decoder: Any) -> Path:
    """Write a checkpoint; ``padding`` is rows of the embedding that are no token.

    The weights are loud, because at their usual size every next token is the same.
    """
    tree = tiny_model(experts)
    tree["init_args"]["decoder"]["init_args"] |= {"vocabulary": tokenizer.vocabulary + padding, **decoder}
    model = build(tree, device="cpu")
    model.init_weights(seed=0)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            parameter.copy_(
                parameter * 5 if parameter.ndim > 1 else parameter + 0.3 * torch.rand(parameter.shape, generator=chance)
            )
            assert not name.endswith(".k.bias") or parameter.any()
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    about = {"format": 1, "model": yaml.safe_dump(tree), "tokenizer": tokenizer.proto}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mm1": about, "state_dict": weights}, path)
    return path


def picture(seed: int, width: int = 40, height: int = 30) -> PIL.Image.Image:
    """Noise."""
    pixels = numpy.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    return PIL.Image.fromarray(pixels)


def file_of(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def logits(model: MM1, tokens_T: torch.Tensor, images_ICHW: torch.Tensor) -> torch.Tensor:
    """Of one row, [T, vocabulary], without padding and without a cache."""
    positions_BT = torch.arange(len(tokens_T))[None]
    x_BTD = model.embed(tokens_T[None], model.encode_images(images_ICHW))
    return model.decoder.logits(model.decoder(x_BTD, torch.ones_like(positions_BT), positions_BT).hidden_BTD)[0]
