"""A tiny model that was taught to say the colour of a square and what stands before it: its answers are known."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from mm1.batch import Batch, targets_of
from mm1.data.encode import encode, prompt
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer, train
from mm1.model.build import build
from mm1.sample import Image, Sample, Text
from mm1.template import turn
from tests.conftest import COLOURS, IMAGE_TOKENS, VOCABULARY, document, picture, tiny_model

ASKED, ANSWER = "which colour is it?", "a {colour} square is near."
ENDLESS = "here is one more. "  # a text that it never ends
STEPS, LEARNED = 250, 0.05  # most steps; nats a target from which it knows its lines by heart


def taught(path: Path, experts: int = 0) -> Path:
    """A checkpoint, dense or with experts in its second layer, as ``mm1-train`` writes them."""
    samples = [_sample(colour) for colour in COLOURS]
    lines = [item.text for item in samples[0].items + document("text", 7).items if isinstance(item, Text)]
    lines += [ENDLESS, *(f"{colour} square Question: Short answer:" for colour in COLOURS)]
    tokenizer = Tokenizer.from_bytes(train(lines * 20, VOCABULARY))
    tree = tiny_model(experts)
    model = build(tree, device="cpu")
    model.init_weights(seed=0)
    batch = _batch(samples, tokenizer, model.image_spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        sums = model.losses(batch)
        nats = sums.cross_entropy / batch.targets
        if nats.item() < LEARNED:
            break
        (nats + sums.router / batch.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    about = {"format": 1, "model": yaml.safe_dump(tree), "tokenizer": tokenizer.proto}
    torch.save({"mm1": about, "state_dict": weights}, path)
    return path


def square(colour: str) -> bytes:
    """The picture of a colour that it was taught."""
    return picture(colour, COLOURS.index(colour))


def _sample(colour: str) -> Sample:
    return Sample((Image(square(colour)), *turn(ASKED, ANSWER.format(colour=colour))), "sft", colour)


def _batch(samples: list[Sample], tokenizer: Tokenizer, spec: object) -> Batch:
    made = [encode(sample, tokenizer, IMAGE_TOKENS) for sample in samples]
    made.append(prompt([Text(ENDLESS * 6)], tokenizer, IMAGE_TOKENS))
    longest = max(len(e.tokens) for e in made)
    tokens_BT = torch.zeros(len(made), longest, dtype=torch.int64)
    segments_BT, learn_BT = torch.zeros_like(tokens_BT), torch.zeros(len(made), longest, dtype=torch.bool)
    for row, e in enumerate(made):
        tokens_BT[row, : len(e.tokens)], segments_BT[row, : len(e.tokens)] = e.tokens, 1
        learn_BT[row, : len(e.tokens)] = e.learn
    positions_BT = torch.arange(longest).expand_as(tokens_BT) * segments_BT
    pictures = torch.stack([prepare(image, spec) for e in made for image in e.images])  # type: ignore[arg-type]
    targets_BT = targets_of(tokens_BT, segments_BT, learn_BT)
    return Batch(tokens_BT, targets_BT, segments_BT, positions_BT, torch.zeros_like(tokens_BT), pictures)
