"""A training checkpoint as three files anyone can read: weights, configuration, tokenizer; nothing of the optimizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import safetensors
import safetensors.torch

from mm1.data.tokenizer import put
from mm1.errors import UserError
from mm1.model import stored


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write ``model.safetensors``, ``model.yaml`` and the tokenizer; the folder appears whole or not at all.

    Args:
        checkpoint: A ``*.ckpt`` of mm1-train.
        folder: Where to; must not exist.

    Raises:
        UserError: The checkpoint is none or does not fit its own configuration, or the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; expected a folder that is not there yet")
    found = stored.read(checkpoint)
    weights = {name: tensor.contiguous() for name, tensor in found.model().state_dict().items()}
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        safetensors.torch.save_file(weights, temporary / "model.safetensors", {"format": str(stored.FORMAT)})
    except safetensors.SafetensorError as error:
        raise UserError(f"{temporary} cannot be written ({error}); expected a disk with room for the weights") from None
    (temporary / "model.yaml").write_text(found.config)
    put(temporary, found.tokenizer)
    os.replace(temporary, folder)
    return folder
