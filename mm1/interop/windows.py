"""Sliding windows as Qwen writes them: a width, a switch, and which layers have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1.interop.settings import Settings

WINDOWED, FULL = "sliding_attention", "full_attention"


def window_arguments(settings: Settings) -> dict[str, Any]:
    """``window_tokens`` and ``windowed_layers`` of the Decoder; nothing where no layer has a window.

    ``layer_types`` decides where it is there; before it, all layers from ``max_window_layers`` on had the window.

    Raises:
        UserError: A kind of layer that is not known here.
    """
    if not settings.flag("use_sliding_window") or settings.get("sliding_window") is None:
        return {}
    layers = settings.whole("num_hidden_layers")
    kinds = settings.get("layer_types")
    if kinds is None:
        windowed = list(range(settings.whole("max_window_layers", least=0), layers))
    elif isinstance(kinds, list) and len(kinds) == layers and all(kind in (WINDOWED, FULL) for kind in kinds):
        windowed = [layer for layer, kind in enumerate(kinds) if kind == WINDOWED]
    else:
        raise settings.fault("layer_types", f"{layers} times {WINDOWED} or {FULL}")
    if not windowed:
        return {}
    return {"window_tokens": settings.whole("sliding_window"), "windowed_layers": windowed}


def window_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back."""
    window, layers = arguments["window_tokens"], range(arguments["layers"])
    if window is None:
        return {"use_sliding_window": False, "sliding_window": None}
    windowed = layers if arguments["windowed_layers"] is None else arguments["windowed_layers"]
    kinds = [WINDOWED if layer in windowed else FULL for layer in layers]
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds}
