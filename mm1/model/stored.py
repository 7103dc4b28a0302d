"""A trained model as it lies on disk: a training checkpoint (docs/house.md), or a folder that ``mm1-convert`` exported.

No Lightning and no pickled code: whoever can read this file can read a model of ours.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from torch import Tensor

from mm1.errors import UserError
from mm1.model.adapters import check_base, merged
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.model.pieces import AtRest, InPieces, Pieces, is_sharded
from mm1.model.positions import resampled
from mm1.template import OURS, Template

FORMAT = 1  # of exported folders
CHECKPOINT_FORMAT = 3  # of training checkpoints
PREFIX = "model."  # of the weights in a Lightning module that holds the model
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, ORIGIN, TEMPLATE = "model.yaml", "origin.json", "template.yaml"
TRANSFORMERS = "config.json"  # holds the model's configuration where transformers is to read it too
PREPEND = "prepend_scheme"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class Stored:
    """A model at rest.

    Args:
        config: YAML of the class-path tree that builds it.
        tokenizer: Bytes of the tokenizer it was trained with.
        weights: Every parameter and buffer by name, in mapped files: they cost memory where they are touched, or
            (:class:`mm1.model.pieces.InPieces`) when they are asked for.
        origin: Where it was read, for errors.
        origin_json: Where its parts came from (:mod:`mm1.interop.origin`), None if they are our own.
        template: In whose words it was tuned on conversations, None if it was not.
    """

    config: str
    tokenizer: bytes
    weights: Mapping[str, Tensor]
    origin: str
    origin_json: str | None = None
    template: Template | None = None

    def model(self) -> MM1:
        """The model with its weights, on the CPU, in evaluation mode.

        Raises:
            UserError: The configuration builds no model, or tensors are missing, left over or misshaped.
        """
        model = self.empty()
        fill(model, self.weights, self.origin)
        return model.eval()

    def empty(self) -> MM1:
        """The model without its weights, on the meta device.

        Raises:
            UserError: The configuration builds no model.
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
        model.template = self.template or OURS
        return model


def read(path: str | Path) -> Stored:
    """Read a checkpoint (a file or, sharded, a folder) or an exported folder.

    Raises:
        UserError: Nothing there, something else, or a format that this version does not read.
    """
    path = Path(path)
    if is_sharded(path):
        return _stored(Pieces(path).checkpoint(read=False), path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a training checkpoint (*.ckpt) or an exported folder")
    return _read_checkpoint(path)


def fill(model: MM1, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put ``weights`` into a model built on the meta device; every tensor must find its place, and every place one.

    Raises:
        UserError: They do not fit (:func:`check_fits`).
    """
    weights = resampled(weights, model)
    check_fits(weights, model.state_dict(), f"{origin} does not fit its model configuration")
    model.load_state_dict(weights, assign=True)


def check_fits(weights: Mapping[str, Any], places: Mapping[str, Tensor], complaint: str) -> None:
    """Compare names and shapes.

    Raises:
        UserError: ``complaint``, and how many are missing, left over and misshaped, the first of each by name.
    """
    weights = weights.at_rest if isinstance(weights, InPieces) else weights
    misshaped = [
        f"{name} is {tuple(weights[name].shape)} where the model has {tuple(place.shape)}"
        for name, place in places.items()
        if name in weights and weights[name].shape != place.shape
    ]
    faults = {
        "missing": sorted(places.keys() - weights.keys()),
        "left over": sorted(weights.keys() - places.keys()),
        "misshaped": misshaped,
        "of no weights": sorted(
            f"{name} is {weights[name].dtype}"
            for name, place in places.items()
            if name in weights and weights[name].is_floating_point() != place.is_floating_point()
        ),
    }
    told = [f"{len(names)} tensors {fault}, the first: {names[0]}" for fault, names in faults.items() if names]
    if told:
        raise UserError(f"{complaint}: {'; '.join(told)}")


def check_vocabulary(tokens: int, rows: int, origin: str) -> None:
    """Every id of a model's tokenizer has a row in its decoder.

    Raises:
        UserError: There are more ids than rows.
    """
    if tokens > rows:
        raise UserError(
            f"{origin} has a tokenizer of {tokens} entries for a decoder of {rows}; "
            f"expected one that fits (model.decoder.init_args.vocabulary)"
        )


def upgrade(checkpoint: dict[str, Any]) -> None:
    """Bring a training checkpoint of an older format, in place, to this version's; a newer one stays as it is.

    Format 1 has no ``chance``, the random state of every rank: such a run goes on with numbers drawn anew. Up to
    format 2 checkpoints are files; from 3 on one may be a folder.
    """
    about = checkpoint["mm1"]
    if about["format"] == 1:
        about |= {"format": 2, "chance": []}
    if about["format"] == 2:
        about |= {"format": 3}


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
    return _stored(found, path)


def _stored(found: Any, path: Path) -> Stored:
    about = found.get("mm1") if isinstance(found, dict) else None
    if not isinstance(about, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{path} holds no section named mm1; expected a checkpoint written by mm1-train")
    _check_format(about.get("format"), path, range(1, CHECKPOINT_FORMAT + 1))
    if not isinstance(about.get("model"), str) or not isinstance(about.get("tokenizer"), bytes):
        raise UserError(f"{path} does not hold its model's YAML and tokenizer; expected a *.ckpt of mm1-train")
    weights: Mapping[str, Any] = {
        name.removeprefix(PREFIX): value
        for name, value in found["state_dict"].items()
        if name.startswith(PREFIX) and isinstance(value, Tensor | AtRest)
    }
    if any(isinstance(value, AtRest) for value in weights.values()):
        weights = InPieces(weights)
    if "lora" in about:
        weights = _with_base(weights, about["lora"], path)
    origin = about.get("origin")
    origin = origin if isinstance(origin, str) else None
    template = Template.of(about["template"], path) if "template" in about else None
    return Stored(about["model"], about["tokenizer"], weights, str(path), origin, template)


def _with_base(adapters: Mapping[str, Tensor], about: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint that holds adapters alone."""
    if not Path(about["base"]).exists():
        raise UserError(
            f"{path} holds adapters of {about['base']}, which is not there; expected the model that they were trained "
            f"beside: put it back (mm1-convert export makes one folder of both)"
        )
    base = read(about["base"]).weights
    check_base(about, base, path)
    return merged(base, adapters, about)


def _read_folder(path: Path) -> Stored:
    tokenizer = next((name for name in TOKENIZERS if (path / name).is_file()), None)
    weights = INDEX if (path / INDEX).is_file() else WEIGHTS
    either = " or ".join(TOKENIZERS)
    needed = {weights: path / weights, CONFIG: path / CONFIG, either: path / (tokenizer or TOKENIZERS[0])}
    absent = [name for name, file in needed.items() if not file.is_file()]
    if absent == [CONFIG] and (path / TRANSFORMERS).is_file():
        return _read_transformers(path, weights, needed[either])
    if absent:
        raise UserError(f"{path} holds no {absent[0]}; expected a folder written by mm1-convert, or a *.ckpt")
    if all((path / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{path} holds {' and '.join(TOKENIZERS)}; expected the one that mm1-convert wrote")
    return Stored(
        needed[CONFIG].read_text(errors="replace"),
        needed[either].read_bytes(),
        _map(path, _shards(path) if weights == INDEX else [WEIGHTS]),
        str(path),
        _origin(path),
        Template.read(path / TEMPLATE) if (path / TEMPLATE).is_file() else None,
    )


def _read_transformers(path: Path, weights: str, tokenizer: Path) -> Stored:
    """A folder of ``mm1-convert export --to transformers``, or of ``save_pretrained`` of a model opened from one."""
    try:
        config = json.loads((path / TRANSFORMERS).read_text())
        about = config.get("mm1")
        proto = tokenizer.read_bytes()
        if about and tokenizer.name == "tokenizer.json":
            proto = _as_ours(json.loads(proto), about["tokenizer"], config)
        tree = yaml.safe_dump(about["model"], sort_keys=False) if about else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a broken {TRANSFORMERS} or tokenizer.json ({error!r:.100})") from None
    if not about:
        raise UserError(
            f"{path} holds a model of type {config.get('model_type')}, none of ours; expected a folder written by "
            f"mm1-convert export (mm1-convert join takes in a decoder of others)"
        )
    _check_format(about.get("format"), path)
    tensors = _map(path, _shards(path) if weights == INDEX else [WEIGHTS], checked=False)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return Stored(tree, proto, tensors, str(path), _origin(path))


def _as_ours(data: dict[str, Any], about: dict[str, Any], config: dict[str, Any]) -> bytes:
    """The tokenizer's bytes as :mod:`mm1.data.hf_tokenizer` had them before the export changed what it has to."""
    lent = config["image_token_index"] if about["image"] is None else None  # a token for pictures alone
    added = (token for token in data["added_tokens"] if token["id"] < config["vocab_size"])
    data["added_tokens"] = [token for token in added if token["id"] != lent]
    for part in metaspaces(data) if about.get(PREPEND) else ():
        part[PREPEND] = about[PREPEND]
    ids = {role: about[role] for role in ("bos", "eos", "pad", "image")}  # in the order of its bytes
    return json.dumps({**data, "mm1": ids}, ensure_ascii=False, separators=(",", ":")).encode()


def metaspaces(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a ``tokenizer.json`` that put a space before a text."""
    step = data.get("pre_tokenizer") or {}
    return [part for part in (step, *step.get("pretokenizers", ())) if PREPEND in part]


def _origin(path: Path) -> str | None:
    file = path / ORIGIN
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _shards(path: Path) -> list[str]:
    try:
        names = sorted({*json.loads((path / INDEX).read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path / INDEX} is broken; expected the index that mm1-convert wrote") from None
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise UserError(f"{path / INDEX} names {absent[0]}, which is not there; expected the whole folder")
    return names


def _map(path: Path, names: list[str], checked: bool = True) -> dict[str, Tensor]:
    """Tensors as views of the mapped files, whose format is ``checked`` where they say one."""
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            with safetensors.safe_open(path / name, framework="pt") as file:
                version = (file.metadata() or {}).get("format", "")
                if checked:
                    _check_format(int(version) if version.isdigit() else version or None, path)
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dictionary
        except safetensors.SafetensorError as error:
            raise UserError(f"{path / name} is not readable as safetensors ({error})") from None
    return weights


def _check_format(found: Any, path: Path, read: range = range(FORMAT, FORMAT + 1)) -> None:
    if found in read:
        return
    newer = isinstance(found, int) and found > read[-1]
    mend = "update mm1" if newer else "read it with the version that wrote it"
    formats = f"{read[0]} to {read[-1]}" if len(read) > 1 else str(read[0])
    raise UserError(f"{path} has checkpoint format {found}; this version reads format {formats}: {mend}")
