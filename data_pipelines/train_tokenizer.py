"""Train a tokenizer on the train text of every stream of a raw corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.sources import Rejection, sources
from mm1.data.tokenizer import Tokenizer, train
from mm1.errors import UserError
from mm1.sample import Text

ALL = 1 << 30


def lines(data: Path) -> Iterator[str]:
    """Every line of text that could be trained on, of all captions too; never of files held out by their name."""
    for readers in sources(data, captions_per_image=ALL).values():
        for reader in readers:
            for draft in reader.drafts():
                if not isinstance(draft, Rejection):
                    for item in draft.items:
                        if isinstance(item, Text):
                            yield from filter(None, item.text.split("\n"))


def train_tokenizer(data: Path, out: Path, vocabulary: int) -> Tokenizer:
    """Write ``out/tokenizer.model``; the same text and size give the same file.

    Raises:
        UserError: No such folder, no text in it, or a vocabulary that this text cannot fill.
    """
    if not data.is_dir():
        raise UserError(f"{data} is no folder; expected a raw corpus (docs/data.md), see --data")
    tokenizer = Tokenizer.from_bytes(train(lines(data), vocabulary))
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "tokenizer.model.tmp"
    temporary.write_bytes(tokenizer.proto)
    os.replace(temporary, out / "tokenizer.model")
    return tokenizer
