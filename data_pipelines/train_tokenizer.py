"""A corpus's tokenizer: trained on the train text of every stream of a raw corpus, or taken from a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.sources import Rejection, sources
from mm1.data.tokenizer import Tokenizer, find, from_hf, put, train
from mm1.errors import UserError
from mm1.sample import Text

ALL = 1 << 30


def lines(data: Path) -> Iterator[str]:
    """Every line of text that could be trained on, of all captions too; never of files held out by their name."""
    inputs = sources(data, captions_per_image=ALL) if data.is_dir() else read_pipeline(data)[0].inputs
    for readers in inputs.values():
        for reader in readers:
            for draft in reader.drafts():
                if not isinstance(draft, Rejection):
                    for item in draft.items:
                        if isinstance(item, Text):
                            yield from filter(None, item.text.split("\n"))


def train_tokenizer(data: Path, out: Path, vocabulary: int) -> Tokenizer:
    """Write ``out/tokenizer.model``; the same text and size give the same file.

    Args:
        data: A raw corpus folder, or a pipeline's YAML, of which the inputs are read.
        out: Corpus folder.
        vocabulary: Number of ids.

    Raises:
        UserError: No such folder or file, no text in it, or a vocabulary that this text cannot fill.
    """
    if not data.is_dir() and data.suffix not in (".yaml", ".yml"):
        raise UserError(f"{data} is no folder; expected a raw corpus or a pipeline's YAML (docs/data.md), see --data")
    return put(out, train(lines(data), vocabulary))


def take_tokenizer(path: Path, out: Path) -> Tokenizer:
    """Put the tokenizer of a model into ``out``, its bytes as the model has them where the model is one of ours.

    Args:
        path: A model folder (ours or in Hugging Face layout), a corpus, a ``*.ckpt`` or a tokenizer's file.
        out: Corpus folder.

    Raises:
        UserError: There is no tokenizer, or one that cannot be used.
    """
    if path.suffix == ".ckpt" or (path / "modeling_mm1.py").is_file():  # the latter: an export that transformers reads
        from mm1.model.stored import read  # needs torch

        return put(out, read(path).tokenizer)
    published = any((path / name).is_file() for name in ("config.json", "tokenizer_config.json"))
    if published and (path / "tokenizer.json").is_file():
        path /= "tokenizer.json"  # whatever lies beside it: some come with their sentencepiece model as well
    file = find(path) if path.is_dir() else path
    return put(out, from_hf(file) if file.suffix == ".json" else Tokenizer(file).proto)
