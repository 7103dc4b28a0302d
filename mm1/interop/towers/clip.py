"""Image towers of CLIP in open_clip's layout and in transformers'; ``apple/DFN5B-CLIP-ViT-H-14-378`` has both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.interop.settings import Settings, read_settings
from mm1.interop.tensor_files import open_folder
from mm1.interop.towers import preprocessing
from mm1.interop.towers.tower import Tower, translated
from mm1.model.open_clip_tower import arguments
from mm1.model.vision import TEXT_HALF
from mm1.model.weight_file import read_weights

CONFIG = "open_clip_config.json"
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
KINDS = ("clip", "clip_vision_model")
CLASS = "mm1.model.vision.OpenClip"

# open_clip's own names stay; its projection into the space that both towers share is of no use here.
DROPPED_HERE = (TEXT_HALF.pattern, r"visual\.proj")

# What transformers assumes where a config.json is silent.
DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
PREFIX, LAYER = r"(?:vision_model\.)?", r"(?:vision_model\.)?encoder\.layers\.(\d+)\."
NAMES = {
    PREFIX + r"embeddings\.class_embedding": "visual.class_embedding",
    PREFIX + r"embeddings\.patch_embedding\.weight": "visual.conv1.weight",
    PREFIX + r"embeddings\.position_embedding\.weight": "visual.positional_embedding",
    PREFIX + r"pre_layrnorm\.(\w+)": r"visual.ln_pre.\1",
    PREFIX + r"post_layernorm\.(\w+)": r"visual.ln_post.\1",
    LAYER + r"self_attn\.q_proj\.(\w+)": r"visual.transformer.resblocks.\1.attn.in_proj_\2#0",
    LAYER + r"self_attn\.k_proj\.(\w+)": r"visual.transformer.resblocks.\1.attn.in_proj_\2#1",
    LAYER + r"self_attn\.v_proj\.(\w+)": r"visual.transformer.resblocks.\1.attn.in_proj_\2#2",
    LAYER + r"self_attn\.out_proj\.(\w+)": r"visual.transformer.resblocks.\1.attn.out_proj.\2",
    LAYER + r"layer_norm([12])\.(\w+)": r"visual.transformer.resblocks.\1.ln_\2.\3",
    LAYER + r"mlp\.fc1\.(\w+)": r"visual.transformer.resblocks.\1.mlp.c_fc.\2",
    LAYER + r"mlp\.fc2\.(\w+)": r"visual.transformer.resblocks.\1.mlp.c_proj.\2",
}
DROPPED = (r"text_model\..+", r"(text|visual)_projection\.weight", r"logit_scale", r"(.+\.)?position_ids")


def read_open_clip(folder: Path, allow_pickle: bool) -> Tower:
    """A folder with ``open_clip_config.json``, as open_clip puts on a hub.

    Raises:
        UserError: The tower is not plain, or weights are missing, pickled without leave, or not known.
    """
    where = folder / CONFIG
    found = read_settings(where)
    config = found.get("model_cfg")
    if not isinstance(config, dict) or not isinstance(config.get("vision_cfg"), dict):
        raise UserError(f"{where} has no model_cfg with a vision_cfg; expected the file that open_clip writes")
    init_args = arguments(config["vision_cfg"], bool(config.get("quick_gelu", False)))
    init_args |= preprocessing.of_open_clip(Settings(found, str(where)).section("preprocess_cfg"), str(where))
    weights = read_weights(folder / (SAFE if (folder / SAFE).is_file() else PICKLED), allow_pickle)
    return Tower(CLASS, init_args, translated(weights, {r"(visual\..+)": r"\1"}, DROPPED_HERE, str(folder)))


def read_transformers(folder: Path, config: dict[str, Any], allow_pickle: bool) -> Tower:
    """A folder of transformers' ``CLIPModel`` or ``CLIPVisionModel``, with a projection or without.

    Raises:
        UserError: A setting that open_clip's tower does not have, or weights that are missing or not known.
    """
    where = str(folder / "config.json")
    values = Settings(config, where).section("vision_config") if config["model_type"] == "clip" else config
    settings = Settings(values, where, DEFAULTS)
    settings.only("layer_norm_eps", 1e-5)
    settings.only("hidden_act", "quick_gelu", "gelu")
    width, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    shape = {
        "image_size": settings.whole("image_size"),
        "patch_size": settings.whole("patch_size"),
        "width": width,
        "layers": settings.whole("num_hidden_layers"),
        "head_width": width // heads,
        "mlp_ratio": settings.whole("intermediate_size") / width,
    }
    init_args = arguments(shape, settings.get("hidden_act") == "quick_gelu") | preprocessing.of_transformers(folder)
    files = open_folder(folder, allow_pickle)
    weights = {name: files.read(name) for name in files.shapes}
    return Tower(CLASS, init_args, translated(weights, NAMES, DROPPED, str(folder)))


def prefers_transformers(folder: Path) -> bool:
    """Whether a folder in both layouts has safetensors in transformers' alone."""
    return not (folder / SAFE).is_file() and (folder / "model.safetensors").is_file()
