"""Rotary settings of a ``config.json`` and of our decoder, translated both ways.

transformers 5 writes ``rope_parameters``; before it were ``rope_theta`` and ``rope_scaling``, whose kind was first
called ``type`` and then ``rope_type``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.settings import Settings

KINDS = {"linear": "LinearRope", "dynamic": "DynamicRope", "yarn": "YarnRope", "llama3": "Llama3Rope"}
LENGTH = "original_max_position_embeddings"
REQUIRED = {
    "linear": (),
    "dynamic": (LENGTH,),
    "yarn": (LENGTH,),
    "llama3": (LENGTH, "low_freq_factor", "high_freq_factor"),
}
OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}
ALWAYS = {"rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", LENGTH}


def rope_arguments(settings: Settings) -> dict[str, Any]:
    """``rope_base`` and, where positions are scaled, ``rope`` of the Decoder.

    Raises:
        UserError: A kind of scaling, or a share of rotated pairs, that is not computed here.
    """
    settings.only("partial_rotary_factor", 1.0)
    where = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"  # of both, transformers takes it
    values = settings.get(where) or {}
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise settings.fault(where, "one object, the same for all layers")
    theta = settings.get("rope_theta")
    rope = Settings(values, f"{settings.where}, {where},", {"rope_theta": 1e4 if theta is None else theta})
    rope.only("partial_rotary_factor", 1.0)
    kind = values.get("rope_type", values.get("type", "default"))
    base = {"rope_base": rope.real("rope_theta")}
    if kind == "default":
        return base
    if not isinstance(kind, str) or kind not in KINDS:
        raise rope.fault("rope_type" if "rope_type" in values else "type", f"one of default, {', '.join(KINDS)}")
    return base | {"rope": {"class_path": f"mm1.model.rope.{KINDS[kind]}", "init_args": _scaling(kind, rope, settings)}}


def _scaling(kind: str, rope: Settings, settings: Settings) -> dict[str, Any]:
    required, optional = REQUIRED[kind], OPTIONAL.get(kind, ())
    unknown = rope.values.keys() - ALWAYS - {*required, *optional} - ({"truncate"} if kind == "yarn" else set())
    if unknown:
        raise rope.fault(min(unknown), f"a key that belongs to {kind} scaling")
    arguments: dict[str, Any] = {"factor": rope.real("factor")}
    if LENGTH in required:
        # Dynamic scaling begins at max_position_embeddings, whatever the other key says.
        own = kind != "dynamic" and rope.get(LENGTH) is not None
        arguments["original_positions"] = rope.whole(LENGTH) if own else settings.whole("max_position_embeddings")
    arguments |= {key: rope.real(key) for key in required if key != LENGTH}
    arguments |= {key: rope.real(key) for key in optional if rope.get(key) is not None}
    return arguments | ({"truncate": rope.flag("truncate")} if rope.get("truncate") is not None else {})


def rope_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back, as transformers 5 writes it, with as many positions as an unscaled model is not told."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": arguments["rope_base"]}
    scaling = arguments["rope"]
    if scaling is None:
        return {"rope_parameters": values}
    own = {key: value for key, value in scaling["init_args"].items() if value is not None}
    length = own.pop("original_positions", None)
    kind = next(kind for kind, name in KINDS.items() if scaling["class_path"].endswith(f".{name}"))
    more = {} if length is None or kind == "dynamic" else {LENGTH: length}
    whole = {} if kind != "dynamic" else {"max_position_embeddings": length}
    return {"rope_parameters": {**values, **own, **more, "rope_type": kind}, **whole}
