"""A stored model that is to be written anew: what can be wrong with it is found before the first byte is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.interop.origin import Origin
from mm1.interop.write import new_folder, write_tensors
from mm1.model import stored
from mm1.model.mm1 import MM1


@dataclass(frozen=True)
class Whole:
    """A stored model whose parts go together.

    Args:
        found: The model at rest.
        empty: The same, built on the meta device.
        tokenizer: Its tokenizer.
        origin: Where its parts came from.
    """

    found: stored.Stored
    empty: MM1
    tokenizer: Tokenizer
    origin: Origin


def read_whole(path: str | Path) -> Whole:
    """Read a checkpoint or a model folder and look at all of it.

    Raises:
        UserError: It is none, its weights do not fit its configuration, its tokenizer is broken or larger than its
            embedding, or its origin is broken.
    """
    found = stored.read(path)
    empty = found.empty()
    stored.check_fits(found.weights, empty.state_dict(), f"{path} does not fit its model configuration")
    try:
        tokenizer = Tokenizer.from_bytes(found.tokenizer)
        origin = Origin.from_json(found.origin_json)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    stored.check_vocabulary(tokenizer.vocabulary, empty.decoder.vocabulary, str(path))
    return Whole(found, empty, tokenizer, origin)


def write_anew(
    whole: Whole, out: Path, config: str, tensors: Iterator[tuple[str, Tensor]], total: int | None = None
) -> Path:
    """Write what was made of a model, with the tokenizer and the origin of that; it appears whole or not at all.

    Args:
        whole: The model that it was made of.
        out: Folder to write; must not exist.
        config: YAML of the class-path tree that builds the new one.
        tensors: The new one's weights by name.
        total: How many there are, for the progress bar.
    """
    found = whole.found
    with new_folder(out) as folder:
        write_tensors(folder, tensors, {"format": str(stored.FORMAT)}, total=total)
        (folder / stored.CONFIG).write_text(config)
        (folder / whole.tokenizer.file_name).write_bytes(found.tokenizer)
        if found.template is not None:
            (folder / stored.TEMPLATE).write_text(yaml.safe_dump(found.template.record(), sort_keys=False))
        if found.origin_json is not None:
            (folder / stored.ORIGIN).write_text(found.origin_json, encoding="utf-8")
    return out
