"""The language model leaves alone, as the family that it came from keeps it: what was joined and not trained comes back
bit for bit, a grown vocabulary is cut to what it was.

A decoder of our own goes out as the first family whose settings describe it: Llama, or Mixtral with experts in every
layer, where nothing more is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mm1.data.hf_tokenizer import KEY
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.interop.decoder_in import CLASS
from mm1.interop.family import Family, families
from mm1.interop.fast_tokenizer import tokenizer_json
from mm1.interop.origin import DecoderOrigin
from mm1.interop.settings import Settings
from mm1.interop.whole import read_whole
from mm1.interop.write import new_folder, write_tensors
from mm1.model.build import resolve
from mm1.model.decoder import Decoder

ROWS = ("embedding.weight", "head.weight")
FIRST = ("llama", "mixtral")  # which everybody reads

# arguments of an MoE that only training sees
TRAINING = ("balance", "balance_weight", "z_weight", "expert_dropout")


def export_decoder(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write the decoder of a model as a folder in Hugging Face layout.

    Args:
        checkpoint: A ``*.ckpt`` of mm1-train, or a model folder.
        folder: Where to; must not exist.

    Raises:
        UserError: The checkpoint is none, its weights do not fit its configuration, no family describes its decoder, or
            the folder exists.
    """
    whole = read_whole(checkpoint)
    found, tokenizer = whole.found, whole.tokenizer
    tree = yaml.safe_load(found.config)["init_args"]["decoder"]
    arguments = resolve(tree, Decoder, f"the decoder of {checkpoint}")["init_args"]
    weights = {
        name.removeprefix("decoder."): tensor for name, tensor in found.weights.items() if name.startswith("decoder.")
    }
    weights = {name: weights[name] for name in whole.empty.decoder.state_dict()}
    origin = whole.origin.decoder
    if origin is not None and not _differences(families()[origin.family], origin.config, arguments):
        config, files = origin.config, _original_files(tokenizer, origin)
        tensors = _original_tensors(weights, origin)
    else:
        family, config = _family_for(arguments)
        config |= _ids(tokenizer) | {"dtype": _type(weights["norm.weight"])}
        files, tensors = _own_files(tokenizer), _their_tensors(weights, families()[family], 0)
    with new_folder(folder) as temporary:
        write_tensors(temporary, tensors, {"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (temporary / "README.md").write_text(_card(Path(folder).name, config, origin), encoding="utf-8")
    return Path(folder)


def _original_tensors(weights: Mapping[str, Tensor], origin: DecoderOrigin) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, with the rows, the types and the head that they had."""
    family = families()[origin.family]
    cut = {name: tensor[: origin.vocabulary] if name in ROWS else tensor for name, tensor in weights.items()}
    if origin.stored_head:
        cut["head.weight"] = cut["embedding.weight"].clone()
    for name, tensor in _their_tensors(cut, family, origin.layout):
        yield name, tensor.to(getattr(torch, origin.dtypes.get(name, origin.dtype)))


def _their_tensors(weights: Mapping[str, Tensor], family: Family, layout: int) -> Iterator[tuple[str, Tensor]]:
    for name, place in family.places(weights, layout).items():
        yield from place.blocks(weights[name])


def _family_for(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first family that computes exactly this, and its ``config.json``.

    Raises:
        UserError: There is none; what the nearest one would compute otherwise is named.
    """
    nearest: tuple[list[str], str] | None = None
    for name in sorted(families(), key=lambda name: (name not in FIRST, name)):
        family = families()[name]
        config = family.settings(arguments)
        differences = _differences(family, config, arguments)
        if not differences:
            return name, config
        if nearest is None or len(differences) < len(nearest[0]):
            nearest = differences, name
    assert nearest is not None  # there are families
    raise UserError(
        f"no family of open decoders computes what this one does: the nearest, {nearest[1]}, differs in "
        f"{', '.join(nearest[0])} (model.decoder.init_args); export it with --to own or --to transformers"
    )


def _differences(family: Family, config: dict[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """Arguments in which a decoder is not what ``config`` asks for; all that it asks for, if that is refused."""
    try:
        asked = family.arguments(Settings(config, "config.json", family.defaults))
    except UserError as error:
        return [str(error)]
    theirs = _meaning(resolve({"class_path": CLASS, "init_args": asked}, Decoder)["init_args"])
    ours = _meaning(arguments)
    return [key for key in ours if ours[key] != theirs[key]]


def _meaning(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments make a decoder compute: defaults spelled out, what only training sees left out."""
    said = dict(arguments)
    layers = range(said["layers"])
    for key in ("vocabulary", "dropout", "checkpointing"):
        said.pop(key)
    said["kv_heads"] = said["kv_heads"] or said["heads"]
    said["head_width"] = said["head_width"] or said["width"] // said["heads"]
    windowed = layers if said["windowed_layers"] is None else said["windowed_layers"]
    said["windowed_layers"] = sorted(windowed) if said["window_tokens"] else []
    moe, every, dense = said.pop("moe"), said.pop("moe_every"), said.pop("dense_layers")
    said["sparse layers"] = [n for n in layers if moe and (n + 1) % every == 0 and n not in dense]
    inner = dict(moe["init_args"]) if moe else {}
    said["expert_width"] = moe and (inner.pop("expert_width", None) or said["ffn_width"])
    said["moe"] = moe and [moe["class_path"], {key: inner[key] for key in inner if key not in TRAINING}]
    return said


def _original_files(tokenizer: Tokenizer, origin: DecoderOrigin) -> dict[str, bytes]:
    files = {name: text.encode() for name, text in origin.files.items()}
    if origin.sentencepiece_bytes is not None:
        return {**files, "tokenizer.model": tokenizer.proto[: origin.sentencepiece_bytes]}
    return {**files, "tokenizer.json": _without_ours(tokenizer, origin.tokens)}


def _own_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    if tokenizer.file_name == "tokenizer.json":
        vocabulary = _without_ours(tokenizer, tokenizer.vocabulary)
    else:
        vocabulary = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False).encode()
    names = {at: name for name, at in _vocabulary(json.loads(vocabulary)).items()}
    roles = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    about = {f"{role}_token": names[at] for role, at in roles.items() if at in names}
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {"tokenizer.json": vocabulary, "tokenizer_config.json": json.dumps(about, indent=2).encode()}


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    return {**data["model"]["vocab"], **{token["content"]: token["id"] for token in data["added_tokens"]}}


def _without_ours(tokenizer: Tokenizer, tokens: int) -> bytes:
    """The JSON without our key and without ids from ``tokens`` on."""
    data = json.loads(tokenizer.proto)
    data.pop(KEY)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < tokens]
    return json.dumps(data, ensure_ascii=False).encode()


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}


def _card(name: str, config: dict[str, Any], origin: DecoderOrigin | None) -> str:
    head = f"---\nlicense: {origin.licence}\n---\n" if origin and origin.licence else ""
    began = f", which began as {origin.source}" if origin else ""
    return (
        f"{head}# {name}\n\nThe language model of an MM1{began}, in the layout of {config['architectures'][0]}. "
        f"Written by `mm1-convert export --to decoder`.\n"
    )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
