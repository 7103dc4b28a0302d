"""A trained model as it lies on disk: a training checkpoint (docs/house.md), or a folder that ``mm1-convert`` exported.

No Lightning and no pickled code: whoever can read this file can read a model of ours.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.mm1 import MM1

FORMAT = 1
PREFIX = "model."  # of the weights in a Lightning module that holds the model
FILES = ("model.safetensors", "model.yaml", "tokenizer.model")


@dataclass(frozen=True)
class Stored:
    """A model at rest.

    Args:
        config: YAML of the class-path tree that builds it.
        tokenizer: The sentencepiece model it was trained with.
        weights: Every parameter and buffer by name.
        origin: Where it was read, for errors.
    """

    config: str
    tokenizer: bytes
    weights: dict[str, Tensor]
    origin: str

    def model(self) -> MM1:
        """The model with its weights, on the CPU, in evaluation mode.

        Raises:
            UserError: The configuration builds no model, or tensors are missing, left over or misshaped.
        """
        try:
            config = yaml.safe_load(self.config)
        except yaml.YAMLError as error:
            raise UserError(f"{self.origin} has a model configuration that is not YAML ({error})") from None
        if not isinstance(config, dict):
            raise UserError(f"{self.origin} has a model configuration without a class_path; expected a tree of them")
        try:
            model = build(config)
        except UserError as error:
            raise UserError(f"{self.origin}: {error}") from None
        fill(model, self.weights, self.origin)
        return model.eval()


def read(path: str | Path) -> Stored:
    """Read a checkpoint (a file) or an exported folder.

    Raises:
        UserError: Nothing there, something else, or a format that this version does not read.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a training checkpoint (*.ckpt) or an exported folder")
    return _read_checkpoint(path)


def fill(model: MM1, weights: dict[str, Tensor], origin: str) -> None:
    """Put ``weights`` into a model built on the meta device; every tensor must find its place, and every place one.

    Raises:
        UserError: They do not fit (:func:`check_fits`).
    """
    check_fits(weights, model.state_dict(), f"{origin} does not fit its model configuration")
    model.load_state_dict(weights, assign=True)


def check_fits(weights: dict[str, Tensor], places: dict[str, Tensor], complaint: str) -> None:
    """Compare names and shapes.

    Raises:
        UserError: ``complaint``, and how many are missing, left over and misshaped, the first of each by name.
    """
    misshaped = [
        f"{name} is {tuple(weights[name].shape)} where the model has {tuple(place.shape)}"
        for name, place in places.items()
        if name in weights and weights[name].shape != place.shape
    ]
    faults = {
        "missing": sorted(places.keys() - weights.keys()),
        "left over": sorted(weights.keys() - places.keys()),
        "misshaped": misshaped,
    }
    told = [f"{len(names)} tensors {fault}, the first: {names[0]}" for fault, names in faults.items() if names]
    if told:
        raise UserError(f"{complaint}: {'; '.join(told)}")


def _read_checkpoint(path: Path) -> Stored:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not readable as a checkpoint (cut short?); expected a *.ckpt of mm1-train")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is not readable as a checkpoint ({reason:.120}); expected a *.ckpt of mm1-train"
        ) from None
    about = found.get("mm1") if isinstance(found, dict) else None
    if not isinstance(about, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{path} holds no section named mm1; expected a checkpoint written by mm1-train")
    _check_format(about.get("format"), path)
    if not isinstance(about.get("model"), str) or not isinstance(about.get("tokenizer"), bytes):
        raise UserError(f"{path} does not hold its model's YAML and tokenizer; expected a *.ckpt of mm1-train")
    weights = {
        name.removeprefix(PREFIX): value
        for name, value in found["state_dict"].items()
        if name.startswith(PREFIX) and isinstance(value, Tensor)
    }
    return Stored(about["model"], about["tokenizer"], weights, str(path))


def _read_folder(path: Path) -> Stored:
    absent = [name for name in FILES if not (path / name).is_file()]
    if absent:
        raise UserError(f"{path} holds no {absent[0]}; expected a folder written by mm1-convert export, or a *.ckpt")
    try:
        with safetensors.safe_open(path / FILES[0], framework="pt") as file:
            about = file.metadata() or {}
        weights = safetensors.torch.load_file(path / FILES[0])
    except safetensors.SafetensorError as error:
        raise UserError(f"{path / FILES[0]} is not readable as safetensors ({error})") from None
    version = about.get("format", "")
    _check_format(int(version) if version.isdigit() else version or None, path)
    return Stored((path / FILES[1]).read_text(errors="replace"), (path / FILES[2]).read_bytes(), weights, str(path))


def _check_format(found: Any, path: Path) -> None:
    if found == FORMAT:
        return
    newer = isinstance(found, int) and found > FORMAT
    mend = "update mm1" if newer else "read it with the version that wrote it"
    raise UserError(f"{path} has checkpoint format {found}; this version reads format {FORMAT}: {mend}")
