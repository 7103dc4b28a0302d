"""What follows from a decoder's numbers, and which of them cannot be: heads, windows, and which layers are sparse."""

from __future__ import annotations

from collections.abc import Sequence

from mm1.errors import UserError, at_least

ARGS = "model.decoder.init_args"


def head_shape(width: int, heads: int, kv_heads: int | None, head_width: int | None) -> tuple[int, int]:
    """Key-value heads and head width, as given or as they follow.

    Raises:
        UserError: Heads that do not divide, or a head that does not fall into pairs.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    at_least(1, {f"{ARGS}.kv_heads": kv_heads})
    if head_width is None:
        if width % heads or (width // heads) % 2:
            raise UserError(f"width {width} over {heads} heads; expected an even head width ({ARGS}.heads)")
        head_width = width // heads
    if head_width < 2 or head_width % 2:
        raise UserError(f"{ARGS}.head_width is {head_width}; expected an even number of at least 2")
    if heads % kv_heads:
        raise UserError(f"{kv_heads} key-value heads for {heads} heads; expected a divisor ({ARGS}.kv_heads)")
    return kv_heads, head_width


def windows(layers: int, window_tokens: int | None, windowed_layers: Sequence[int] | None) -> list[int | None]:
    """How many positions each layer sees, None for the whole document.

    Raises:
        UserError: A window of nothing, layers that are not there, or layers without a window.
    """
    if window_tokens is None:
        if windowed_layers:
            raise UserError(f"windowed_layers without a window_tokens; expected both or none ({ARGS}.window_tokens)")
        return [None] * layers
    at_least(1, {f"{ARGS}.window_tokens": window_tokens})
    windowed = range(layers) if windowed_layers is None else windowed_layers
    _check_layers("windowed_layers", windowed, layers)
    return [window_tokens if index in windowed else None for index in range(layers)]


def sparse_layers(layers: int, moe_every: int, dense_layers: Sequence[int]) -> list[int]:
    """Layers whose feed-forward is a mixture of experts.

    Raises:
        UserError: There are none, or ``dense_layers`` has layers that are not there.
    """
    if not 1 <= moe_every <= layers:
        raise UserError(
            f"moe_every={moe_every} of {layers} layers makes none sparse; expected 1 to {layers} ({ARGS}.moe_every)"
        )
    _check_layers("dense_layers", dense_layers, layers)
    sparse = [index for index in range(moe_every - 1, layers, moe_every) if index not in dense_layers]
    if not sparse:
        raise UserError(
            f"dense_layers {list(dense_layers)} leave none of {layers} layers sparse at moe_every={moe_every}; "
            f"expected one at least ({ARGS}.dense_layers)"
        )
    return sparse


def _check_layers(name: str, chosen: Sequence[int], layers: int) -> None:
    wrong = [index for index in chosen if not 0 <= index < layers]
    if wrong:
        raise UserError(f"{name} names layer {wrong[0]} of {layers}; expected 0 to {layers - 1} ({ARGS}.{name})")
