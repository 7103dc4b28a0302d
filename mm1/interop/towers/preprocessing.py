"""How a published folder wants its pictures, as the arguments of ``OpenClip`` and ``Timm``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.interop.settings import read_settings

PILLOW = {2: "bilinear", 3: "bicubic"}  # how Pillow numbers its filters, and so does transformers
OPEN_CLIP = {"squash": "squash", "shortest": "crop", "longest": "pad"}
TIMM = {"squash": "squash", "center": "crop", "border": "pad"}


def of_transformers(folder: Path) -> dict[str, Any]:
    """From ``preprocessor_config.json``; nothing where there is none.

    Raises:
        UserError: Pictures are brought to size in a way that this project does not know.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    found = read_settings(path)
    size = found.get("size")
    if found.get("do_center_crop", True):
        resize = "crop"
    elif isinstance(size, dict) and size.get("height") == size.get("width") is not None:
        resize = "squash"
    else:
        raise UserError(f"{path} resizes to {size} without a crop; expected a crop of the centre, or a square")
    return _numbers(found, str(path), "image_mean", "image_std") | {
        "resize": resize,
        "interpolation": _known(PILLOW, found.get("resample", 3), f"{path}, resample"),
    }


def of_open_clip(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From ``preprocess_cfg``; what it does not say is left to the class.

    Raises:
        UserError: Pictures are brought to size in a way that this project does not know.
    """
    read = _numbers(found, where, "mean", "std")
    if "resize_mode" in found:
        read["resize"] = _known(OPEN_CLIP, found["resize_mode"], f"{where}, resize_mode")
    return read | _filter(found, where)


def of_timm(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """From ``pretrained_cfg``; what it does not say is left to the class.

    Raises:
        UserError: Pictures are brought to size in a way that this project does not know.
    """
    read = _numbers(found, where, "mean", "std")
    if "crop_mode" in found:
        read["resize"] = _known(TIMM, found["crop_mode"], f"{where}, crop_mode")
    return read | _filter(found, where)


def _numbers(found: Mapping[str, Any], where: str, mean: str, std: str) -> dict[str, Any]:
    read = {ours: found[theirs] for ours, theirs in (("mean", mean), ("std", std)) if found.get(theirs)}
    for key, value in read.items():
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise UserError(f"{where} has {value!r:.60} as {key}; expected three numbers")
    return {key: list(value) for key, value in read.items()}


def _filter(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "interpolation" not in found:
        return {}
    filters = {name: name for name in PILLOW.values()}
    return {"interpolation": _known(filters, found["interpolation"], f"{where}, interpolation")}


def _known(ways: Mapping[Any, str], found: Any, where: str) -> str:
    for way, ours in ways.items():
        if way == found:
            return ours
    raise UserError(f"{where} is {found!r:.60}; expected one of {', '.join(map(repr, ways))}")
