"""DINOv2 of transformers, from a folder or exported to ONNX, for timm's towers of the same name."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from mm1.errors import UserError
from mm1.interop.settings import Settings
from mm1.interop.tensor_files import open_folder
from mm1.interop.towers import dinov2_onnx
from mm1.interop.towers.preprocessing import of_transformers
from mm1.interop.towers.tower import Tower, translated

KINDS = ("dinov2", "dinov2_with_registers")
SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width, as published
HEAD_WIDTH = 64  # in all of them

LAYER = r"encoder\.layer\.(\d+)\."
NAMES = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    LAYER + r"(norm[12]\.\w+)": r"blocks.\1.\2",
    LAYER + r"attention\.attention\.query\.(\w+)": r"blocks.\1.attn.qkv.\2#0",
    LAYER + r"attention\.attention\.key\.(\w+)": r"blocks.\1.attn.qkv.\2#1",
    LAYER + r"attention\.attention\.value\.(\w+)": r"blocks.\1.attn.qkv.\2#2",
    LAYER + r"attention\.output\.dense\.(\w+)": r"blocks.\1.attn.proj.\2",
    LAYER + r"layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    LAYER + r"mlp\.(?:fc1|weights_in)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    LAYER + r"mlp\.(?:fc2|weights_out)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"layernorm\.(\w+)": r"norm.\1",
}
FFN = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
NEEDED = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, FFN[0]: 2, FFN[1]: 2}  # and their axes
DROPPED = (r"embeddings\.mask_token", r"classifier\..+")  # for DINOv2's own training, and for sorting into classes


def read_folder(folder: Path, config: dict[str, Any], allow_pickle: bool) -> Tower:
    """A folder of transformers' ``Dinov2Model`` or ``Dinov2WithRegistersModel``, or of a classifier on one.

    Raises:
        UserError: A setting that timm's tower does not have, or weights that are missing or not known.
    """
    settings = Settings(config, str(folder / "config.json"), {"layer_norm_eps": 1e-6, "hidden_act": "gelu"})
    settings.only("layer_norm_eps", 1e-6)
    settings.only("hidden_act", "gelu")
    settings.only("qkv_bias", True)
    settings.only("num_register_tokens", 4)
    files = open_folder(folder, allow_pickle)
    weights = {name.removeprefix(f"{config['model_type']}."): files.read(name) for name in files.shapes}
    normalised = {key: value for key, value in of_transformers(folder).items() if key != "resize"}
    return _tower(weights, settings.whole("num_attention_heads"), str(folder), normalised)


def read_onnx(path: Path) -> Tower:
    """A DINOv2 that was exported from transformers, whatever head stands on it.

    Raises:
        UserError: As :func:`mm1.interop.towers.dinov2_onnx.read`.
    """
    return _tower(dinov2_onnx.read(path), None, str(path), {})


def _tower(weights: dict[str, Tensor], heads: int | None, origin: str, preprocessing: dict[str, Any]) -> Tower:
    state = translated(weights, NAMES, DROPPED, origin)
    if absent := [name for name, axes in NEEDED.items() if name not in state or state[name].ndim != axes]:
        raise UserError(f"{origin} lacks what timm calls {absent[0]}; expected a DINOv2 with all its weights (source)")
    registers, (*_, tokens, width) = "reg_token" in state, state["pos_embed"].shape
    patch_px = state["patch_embed.proj.weight"].shape[-1]
    made, read = state[FFN[0]].shape[0], state[FFN[1]].shape[1]  # the giant's layers are gated: they make two halves
    size = SIZES.get(width, "small" if made == read else "giant")
    name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    init_args: dict[str, Any] = {"name": name, "image_px": isqrt(tokens - 1) * patch_px, **preprocessing}
    if width not in SIZES:
        layers = sum(name.endswith(".ls1.gamma") for name in state)
        heads = heads or width // HEAD_WIDTH
        init_args |= {"patch_px": patch_px, "width": width, "layers": layers, "heads": heads}
    if registers:  # these towers of timm keep no position for the class token: it stands in the token itself
        positions = state["pos_embed"]
        state["cls_token"], state["pos_embed"] = state["cls_token"] + positions[:, :1], positions[:, 1:]
    return Tower("mm1.model.vision.Timm", init_args, state)
