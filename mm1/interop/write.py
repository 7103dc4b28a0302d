"""Weights go out as safetensors, one file or several with an index, and a folder appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor
from tqdm import tqdm

from mm1.errors import UserError
from mm1.model.stored import INDEX, WEIGHTS

SHARD_BYTES = 4 * 10**9
UNFINISHED = ".mm1-unfinished"  # what a killed run left is taken away by the next, so nobody else's may be called so


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; it takes that name when all is done, and goes away when it is not.

    Raises:
        UserError: ``folder`` exists already.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already; expected a folder that is not there yet")
    temporary = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str],
    *,
    shard_bytes: int = SHARD_BYTES,
    total: int | None = None,
) -> None:
    """Write tensors as they come, never holding more than a shard of them.

    Args:
        folder: Where ``model.safetensors`` goes, or the shards and ``model.safetensors.index.json``.
        tensors: Names and tensors.
        metadata: What the header of each file says.
        shard_bytes: A shard is closed before it would hold more.
        total: How many tensors there are, for the progress bar.

    Raises:
        UserError: The disk is full.
    """
    shard: dict[str, Tensor] = {}
    held_bytes, bytes_in_all = 0, 0
    written: list[list[str]] = []

    def close() -> None:
        path = folder / f"part-{len(written)}"
        try:
            safetensors.torch.save_file(shard, path, metadata)
        except safetensors.SafetensorError as error:
            raise UserError(
                f"{folder} cannot be written ({error}); expected a disk with room for the weights"
            ) from None
        written.append(list(shard))
        shard.clear()

    for name, tensor in tqdm(tensors, total=total, desc="writing", unit="tensor", leave=False, disable=total is None):
        if shard and held_bytes + tensor.nbytes > shard_bytes:
            close()
            held_bytes = 0
        shard[name] = tensor.contiguous()
        held_bytes, bytes_in_all = held_bytes + tensor.nbytes, bytes_in_all + tensor.nbytes
    close()
    _name_shards(folder, written, bytes_in_all)


def _name_shards(folder: Path, written: list[list[str]], bytes_in_all: int) -> None:
    """The names that everybody uses need the number of shards, which is known last."""
    if len(written) == 1:
        os.replace(folder / "part-0", folder / WEIGHTS)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(written, 1):
        file = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        os.replace(folder / f"part-{number - 1}", folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": bytes_in_all}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
