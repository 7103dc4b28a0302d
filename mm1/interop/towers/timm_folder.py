"""Towers of timm as it puts them on a hub: ``config.json`` with an ``architecture``, and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.interop.settings import Settings
from mm1.interop.tensor_files import open_folder
from mm1.interop.towers import preprocessing
from mm1.interop.towers.tower import Tower
from mm1.model.vision import POOLING_HALF

SIZES = {
    "img_size": "image_px",
    "patch_size": "patch_px",
    "embed_dim": "width",
    "depth": "layers",
    "num_heads": "heads",
}
UNUSED = ("num_classes", "global_pool", "class_token", "in_chans", "pretrained_strict")  # of the head, or always so


def read(folder: Path, config: dict[str, Any], allow_pickle: bool) -> Tower:
    """A folder that timm wrote.

    Raises:
        UserError: The tower was built with arguments that ``Timm`` does not have, or weights are missing.
    """
    where = str(folder / "config.json")
    settings = Settings(config, where)
    if not isinstance(config["architecture"], str):
        raise settings.fault("architecture", "a name that timm knows")
    built_with = settings.section("model_args")
    if odd := sorted(built_with.keys() - SIZES.keys() - set(UNUSED)):
        raise UserError(f"{where} builds its tower with {odd[0]}={built_with[odd[0]]!r}, which Timm does not take")
    published = settings.section("pretrained_cfg") or config  # older files keep all in one
    sizes = {SIZES[key]: _side(value, where) for key, value in built_with.items() if key in SIZES}
    size = published.get("input_size")
    if "image_px" not in sizes and size:
        sizes["image_px"] = _side(size[1:] if isinstance(size, list) else size, where)
    files = open_folder(folder, allow_pickle)
    weights = {name: files.read(name) for name in files.shapes if not name.startswith(POOLING_HALF)}
    init_args = {"name": config["architecture"], **sizes, **preprocessing.of_timm(published, where)}
    return Tower("mm1.model.vision.Timm", init_args, weights)


def _side(value: Any, where: str) -> int:
    first, *others = value if isinstance(value, list) and value else [value]
    if not isinstance(first, int) or any(side != first for side in others):
        raise UserError(f"{where} has sizes of {value!r:.60}; expected whole numbers, of pictures and patches squares")
    return first
