"""Files of published weights behind one contract: names and shapes without reading, then one tensor at a time.

Nothing is read twice or held: what :meth:`TensorFiles.read` gives lies in a mapped file wherever the format allows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.interop.settings import read_settings
from mm1.model.weight_file import unpickled

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
COUNTED = "position_ids"  # 0, 1, 2, ..., which older files keep beside the weights as integers
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAFE = ("model.safetensors", "model.safetensors.index.json")


class TensorFiles(Protocol):
    """Tensors at rest.

    Attributes:
        where: What they are called in errors.
        shapes: Shape of each by name.
        types: torch's name for the type of each.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]

    def read(self, name: str) -> Tensor:
        """One of them, on the CPU; not to be written to."""


class Safetensors:
    """A safetensors file, or several that an index lists.

    Args:
        folder: Where ``model.safetensors`` or ``model.safetensors.index.json`` is.

    Raises:
        UserError: A shard is missing, is no safetensors file, or lacks what the index says, or holds odd types.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        for path in shards(folder, *SAFE):
            try:
                file = safetensors.safe_open(path, framework="pt")
                for name in file.keys():  # noqa: SIM118, no dictionary
                    if name in self.shapes:
                        raise UserError(f"{path} holds {name}, which another file of {folder} has as well")
                    piece = file.get_slice(name)
                    self._files[name] = file
                    self.shapes[name], self.types[name] = tuple(piece.get_shape()), piece.get_dtype()
            except safetensors.SafetensorError as error:
                raise UserError(
                    f"{path} is not readable as safetensors ({error}); cut short, or another kind of file?"
                ) from None
        self.types = {name: TYPES.get(kind, kind) for name, kind in self.types.items()}
        _check_types(folder, self.types)
        _check_index(folder, SAFE[1], self.shapes)

    def read(self, name: str) -> Tensor:
        """A view of the mapped file."""
        return self._files[name].get_tensor(name)


class Pickles:
    """``pytorch_model.bin``, or several that an index lists; unpickled with ``weights_only``, so that no code runs.

    Args:
        folder: Where they are.

    Raises:
        UserError: A shard is missing, or holds anything but tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._tensors: dict[str, Tensor] = {}
        for path in shards(folder, *PICKLES):
            self._tensors |= _unpickle(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}
        _check_types(folder, self.types)
        _check_index(folder, PICKLES[1], self.shapes)

    def read(self, name: str) -> Tensor:
        """A view of the mapped file."""
        return self._tensors[name]


def open_folder(folder: Path, allow_pickle: bool = False) -> TensorFiles:
    """The weights of a folder in Hugging Face layout.

    Raises:
        UserError: There are none, they are pickles that were not allowed, or a file is missing or broken.
    """
    if any((folder / name).is_file() for name in SAFE):
        return Safetensors(folder)
    pickled = next((name for name in PICKLES if (folder / name).is_file()), None)
    if pickled is None:
        raise UserError(f"{folder} holds no weights; expected {' or '.join(SAFE)}")
    if not allow_pickle:
        raise UserError(
            f"{folder} holds pickled weights alone ({pickled}), which can carry code; expected safetensors, or "
            f"--allow-pickle to read their tensors and nothing else"
        )
    return Pickles(folder)


def shards(folder: Path, single: str, index: str) -> list[Path]:
    """The files that hold the weights: ``single``, or all that ``index`` names.

    Raises:
        UserError: The index is broken, or a file that it names is missing.
    """
    if not (folder / index).is_file():
        return [folder / single]
    names = sorted({*_weight_map(folder / index).values()})
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder / index} names {len(names)} files, of which {len(absent)} are missing, the first: {absent[0]}; "
            f"expected a complete download"
        )
    return [folder / name for name in names]


def _weight_map(path: Path) -> dict[str, str]:
    found = read_settings(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} has no weight_map; expected an index of tensors by file")
    strange = [file for file in found.values() if not isinstance(file, str) or Path(file).name != file]
    if strange:
        raise UserError(f"{path} names {json.dumps(strange[0])}; expected the name of a file beside it")
    return found


def _check_types(folder: Path, types: dict[str, str]) -> None:
    odd = next((n for n, kind in types.items() if kind not in TYPES.values() and not n.endswith(COUNTED)), None)
    if odd is not None:
        kinds = ", ".join(TYPES.values())
        raise UserError(f"{folder} holds {odd} as {types[odd]}; expected floating-point weights ({kinds})")


def _check_index(folder: Path, index: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if not (folder / index).is_file():
        return
    absent = sorted(_weight_map(folder / index).keys() - shapes.keys())
    if absent:
        raise UserError(
            f"{folder / index} lists {len(absent)} tensors that its files do not hold, the first: {absent[0]}"
        )


def _unpickle(path: Path) -> dict[str, Tensor]:
    found = unpickled(path)
    if not isinstance(found, dict) or not all(isinstance(n, str) and _is_plain(value) for n, value in found.items()):
        raise UserError(f"{path} holds more than tensors by name; expected weights alone")
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
