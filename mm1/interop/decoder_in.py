"""Open language models come in: a folder in Hugging Face layout, or a GGUF file, becomes a Decoder, tensor by tensor.

Before any weight is read, the headers of all files are compared with what the settings ask for: every tensor must find
its place and every place its tensor. Then each is copied from the mapped file into the place where it stays, cast on
the way; the model is never in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.interop.family import Family, Place, family_of
from mm1.interop.gguf_file import Gguf
from mm1.interop.settings import Settings, read_settings
from mm1.interop.tensor_files import TensorFiles, open_folder
from mm1.model.build import build_part
from mm1.model.decoder import Decoder

CLASS = "mm1.model.decoder.Decoder"


@dataclass(frozen=True)
class Published:
    """A decoder of others at rest, found to be complete.

    Args:
        path: The folder or file.
        family_name: Name of its family's file under :mod:`mm1.interop.families`.
        family: The family.
        config: Its ``config.json``.
        arguments: ``init_args`` of the Decoder that computes the same.
        files: Its tensors.
        layout: Which of the family's layouts they have.
        shapes: Shape of each tensor of ours.
        places: Where each of them lies in the files.
    """

    path: Path
    family_name: str
    family: Family
    config: dict[str, Any]
    arguments: dict[str, Any]
    files: TensorFiles
    layout: int
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, Place]

    def copy(self, name: str, tensor: Tensor) -> None:
        """Fill ``tensor``, of any type and on any device, with the weights of the name that it has in our decoder."""
        for theirs, part in self.places[name].blocks(tensor):
            part.copy_(self.files.read(theirs))

    def load(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Decoder:
        """The decoder in evaluation mode; every weight is copied once, from the file to its place."""
        decoder = empty_decoder(self.arguments).to(dtype).to_empty(device=device)
        for name, tensor in decoder.state_dict().items():
            self.copy(name, tensor)
        return decoder.eval()


def open_decoder(path: str | Path, allow_pickle: bool = False) -> Published:
    """Look at a published decoder without reading its weights.

    Args:
        path: A folder with ``config.json`` and safetensors, or a ``.gguf`` file.
        allow_pickle: Read ``pytorch_model.bin`` where there is nothing better.

    Raises:
        UserError: It is not there, of no family of ours, asks for something that is not computed here, or its tensors
            are not exactly those that its settings ask for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a folder in Hugging Face layout, or a .gguf file")
    gguf = None if path.is_dir() else Gguf(path)
    where = str(path / "config.json" if gguf is None else path)
    config = read_settings(path / "config.json") if gguf is None else gguf.config
    name, family = family_of(Settings(config, where))
    arguments = family.arguments(Settings(config, where, family.defaults))
    files = open_folder(path, allow_pickle) if gguf is None else gguf
    try:
        ours = empty_decoder(arguments).state_dict()
    except UserError as error:
        raise UserError(f"{where} describes no decoder: {error}") from None
    layout = _account(family, arguments, ours, files)
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.items()}
    return Published(path, name, family, config, arguments, files, layout, shapes, family.places(ours, layout))


def load_decoder(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", *, allow_pickle: bool = False
) -> Decoder:
    """A published decoder in evaluation mode, filled tensor by tensor.

    Args:
        path: As for :func:`open_decoder`.
        dtype: Type of the weights here; they are cast on the way from the file.
        device: Where they go.
        allow_pickle: As for :func:`open_decoder`.

    Raises:
        UserError: As for :func:`open_decoder`.
    """
    return open_decoder(path, allow_pickle).load(dtype, device)


def empty_decoder(arguments: dict[str, Any]) -> Decoder:
    """A Decoder on the meta device.

    Raises:
        UserError: The arguments do not go together.
    """
    return build_part({"class_path": CLASS, "init_args": arguments}, Decoder)


def _account(family: Family, arguments: dict[str, Any], ours: dict[str, Tensor], files: TensorFiles) -> int:
    """Compare what the settings ask for with what the headers list; the layout that is found.

    Raises:
        UserError: Tensors are missing, left over or misshaped: how many, and the first of each by name.
    """
    wanted = [
        {
            theirs: tuple(part.shape)
            for name, place in family.places(ours, layout).items()
            for theirs, part in place.blocks(ours[name])
        }
        for layout in range(len(family.layouts))
    ]
    layout = min(range(len(wanted)), key=lambda index: len(wanted[index].keys() - files.shapes.keys()))
    shapes = wanted[layout]
    if arguments["tied"]:
        _check_tied(family, files)
        shapes |= {name: files.shapes[name] for name in family.whole["head.weight"] if name in files.shapes}
    faults = {
        "missing": sorted(shapes.keys() - files.shapes.keys()),
        "that nothing reads": sorted(
            name for name in files.shapes.keys() - shapes.keys() if not family.ignored.fullmatch(name)
        ),
        "misshaped": [
            f"{name} is {files.shapes[name]} where the settings make it {shape}"
            for name, shape in shapes.items()
            if files.shapes.get(name, shape) != shape
        ],
    }
    told = [f"{len(names)} tensors {fault}, the first: {names[0]}" for fault, names in faults.items() if names]
    if told:
        raise UserError(f"the weights of {files.where} are not those of its settings: {'; '.join(told)}")
    return layout


def _check_tied(family: Family, files: TensorFiles) -> None:
    """A stored head beside ``tie_word_embeddings`` must be the embedding once more."""
    (head,), (embedding,) = family.whole["head.weight"], family.whole["embedding.weight"]
    if {head, embedding} <= files.shapes.keys() and not torch.equal(files.read(head), files.read(embedding)):
        raise UserError(
            f"{files.where} holds a {head} that differs from {embedding} although tie_word_embeddings is true; "
            f"expected them to be equal, or tie_word_embeddings to be false"
        )
