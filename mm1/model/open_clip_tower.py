"""open_clip's image towers by name and sizes; and the way back, from what a published folder says of its tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import open_clip
from open_clip.model import CLIPVisionCfg, _build_vision_tower  # the way to a tower without its text encoder
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer

from mm1.errors import UserError

# What describes a plain image tower in open_clip; everything else is a variant.
PLAIN = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")


def tower(name: str, sizes: dict[str, Any], heads: int | None, ffn_width: int | None) -> VisionTransformer:
    """A model's image tower, other sizes in place of its own where they are given.

    Args:
        name: Model name, as ``open_clip.list_models()`` gives them.
        sizes: ``image_size``, ``patch_size``, ``width``, ``layers``; None for the model's own.
        heads: Attention heads, or None.
        ffn_width: Inner width of a block's feed-forward layer, or None.

    Raises:
        UserError: There is no such model, its tower has no grid of patches, or the sizes do not go together.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(
            f"open_clip has no model {name!r}; open_clip.list_models() lists them (model.vision.init_args.name)"
        )
    given = {key: value for key, value in sizes.items() if value is not None}
    shape = replace(CLIPVisionCfg(**config["vision_cfg"]), **given)
    if heads is None and "width" in given:
        heads = shape.width // shape.head_width
    if heads is not None and (heads < 1 or shape.width % heads):
        raise UserError(f"{heads} heads over width {shape.width}; expected a divisor (model.vision.init_args.heads)")
    if heads is not None:
        shape = replace(shape, head_width=shape.width // heads)
    if ffn_width is not None:
        shape = replace(shape, mlp_ratio=(ffn_width + 0.5) / shape.width)  # open_clip rounds the product down
    try:
        visual = _build_vision_tower(config["embed_dim"], shape, config.get("quick_gelu", False))
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:  # the ways to refuse a shape
        raise UserError(f"open_clip cannot build {name} with {given}: {error} (model.vision.init_args)") from None
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        raise UserError(
            f"open_clip's {name} has no plain vision transformer, whose patches form a grid; choose one that has "
            f"(model.vision.init_args.name)"
        )
    return visual


def preprocessing(name: str, tag: str | None) -> dict[str, Any]:
    """What the tag's weights were trained on, open_clip's defaults where it does not say."""
    published = {} if tag is None else open_clip.get_pretrained_cfg(name, tag)
    if tag is not None and not published:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"{name} has no weights {tag!r}; expected one of: {tags} (model.vision.init_args.tag)")
    return asdict(PreprocessCfg()) | published


def arguments(vision_cfg: Mapping[str, Any], quick_gelu: bool) -> dict[str, Any]:
    """What builds :class:`OpenClip` for a tower that open_clip describes: a name it has, or a name and sizes.

    Args:
        vision_cfg: The tower under open_clip's keys, as in the ``open_clip_config.json`` of a published folder.
        quick_gelu: Whether the tower uses OpenAI's cheap GELU.

    Raises:
        UserError: It is not plain: an image tower of another kind, or with parts that only a name can ask for.
    """
    try:
        wanted = CLIPVisionCfg(**vision_cfg)
    except TypeError as error:
        raise UserError(f"open_clip knows no image tower of this kind: {error} (vision_cfg)") from None
    known = ((name, open_clip.get_model_config(name)) for name in open_clip.list_models())
    equal = [
        name
        for name, config in known
        if CLIPVisionCfg(**config["vision_cfg"]) == wanted and config.get("quick_gelu", False) == quick_gelu
    ]
    if equal:
        return {"name": min(equal, key=len)}
    plain = CLIPVisionCfg(**{key: value for key, value in vision_cfg.items() if key in PLAIN})
    if plain != wanted:
        odd = ", ".join(f"{key}={value}" for key, value in vision_cfg.items() if key not in PLAIN)
        raise UserError(f"the image tower has {odd}; expected a plain one, or one that open_clip has a name for")
    sizes = {key: getattr(plain, key) for key in ("image_size", "patch_size", "width", "layers", "head_width")}
    if odd_sizes := {key: value for key, value in sizes.items() if type(value) is not int or value < 1}:
        raise UserError(f"the image tower has {odd_sizes}; expected whole numbers of at least 1 (vision_cfg)")
    return {
        "name": "ViT-B-32-quickgelu" if quick_gelu else "ViT-B-32",
        "image_px": plain.image_size,
        "patch_px": plain.patch_size,
        "width": plain.width,
        "layers": plain.layers,
        "heads": plain.width // plain.head_width,
        "ffn_width": int(plain.width * plain.mlp_ratio),
    }
