"""One file of weights that others published: safetensors, or a pickle where that was allowed, tensors alone."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mm1.errors import UserError

NESTS = ("state_dict", "model")  # where training scripts keep the weights in what they save
WRAPPER = "module."  # before every name in what a data-parallel model saved


def read_weights(
    path: str | Path, allow_pickle: bool = False, setting: str = "model.vision.init_args"
) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    Args:
        path: A ``*.safetensors``; any other ending is taken for a pickle.
        allow_pickle: Whether a pickle is read, with ``weights_only``, so that none of its code runs.
        setting: Where ``weights`` and ``allow_pickle`` are set, for errors.

    Raises:
        UserError: There is no such file, it is a pickle and none is allowed, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a file of weights ({setting}.weights)")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} could not be read as safetensors ({error}) ({setting}.weights)") from None
    if not allow_pickle:
        raise UserError(
            f"{path} is no .safetensors but a pickle, which can carry code; expected safetensors, or true at "
            f"{setting}.allow_pickle to read its tensors and nothing else"
        )
    return _unpickle(path, setting)


def unpickled(path: Path) -> Any:
    """What a pickle holds, read with ``weights_only``: tensors in containers, in mapped files where the format allows.

    Raises:
        UserError: It holds anything else, or is no pickle.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a format that is none
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what is no pickle fails in a dozen ways
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {foreign[1]}" if foreign else f"{type(error).__name__}: {error!s:.80}".splitlines()[0]
        raise UserError(
            f"{path} is not readable as pickled tensors and nothing else ({reason}); expected safetensors"
        ) from None


def _unpickle(path: Path, setting: str) -> dict[str, Tensor]:
    found = unpickled(path)
    for nest in NESTS:
        found = found.get(nest, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(
        isinstance(n, str) and isinstance(value, Tensor) for n, value in found.items()
    ):
        raise UserError(f"{path} holds more than tensors by name; expected weights alone ({setting}.weights)")
    wrapped = all(name.startswith(WRAPPER) for name in found)
    return {name.removeprefix(WRAPPER): value for name, value in found.items()} if wrapped else found
