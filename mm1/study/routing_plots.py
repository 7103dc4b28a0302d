"""Draws routing: layers by experts, experts by experts, and the cells of a picture in the colours of their experts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from math import isqrt

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mm1.study.plots import COLOURS, OVER, STYLE, UNDER, canvas, svg

NUMBERED = 16  # experts up to which every cell has room for its number
SIDE_PX = 208
OVERLAY = 150  # opacity of a cell over its picture, of 255


def by_layer(relative_LE: np.ndarray, layers: Sequence[int], description: str) -> str:
    """Load by layer and expert in even shares: clear at one, teal above it, violet below.

    Args:
        relative_LE: Load of each expert over the mean of its layer.
        layers: Names of the rows, from the top.
        description: What a reader who cannot see the chart is told.
    """
    rows, experts = relative_LE.shape
    strength = 0.85 * np.clip(np.abs(relative_LE - 1), 0, 1)[..., None]
    colours = np.where(relative_LE[..., None] > 1, np.array(OVER), np.array(UNDER))
    figure, axes = canvas(height_in=0.62 + min(0.3, 3 / rows) * rows)
    with matplotlib.rc_context(STYLE):
        _matrix(axes, np.concatenate([colours, strength], axis=-1), "expert")
        if rows <= 12:
            axes.set_yticks(range(rows), [f"layer {layer}" for layer in layers], color=COLOURS["ink"])
        else:
            shown = range(0, rows, -(-rows // 8))
            axes.set_yticks(shown, [f"layer {layers[at]}" for at in shown])
        if experts <= NUMBERED and rows <= 12:
            _numbers(axes, relative_LE, 7.5 if experts <= 8 else 5.5)
    return svg(figure, description)


def by_pair(share_EE: np.ndarray, description: str) -> str:
    """Of the tokens at the row's expert, the share that also visits the column's; the darkest is the greatest.

    Args:
        share_EE: Shares; the diagonal is left blank.
        description: What a reader who cannot see the chart is told.
    """
    others = np.where(np.eye(len(share_EE), dtype=bool), 0, share_EE)
    strength = others / max(float(others.max()), 1e-9)
    figure, axes = canvas(height_in=3.3)
    with matplotlib.rc_context(STYLE):
        colours = np.broadcast_to(np.array(OVER), (*others.shape, 3))
        _matrix(axes, np.concatenate([colours, 0.85 * strength[..., None]], axis=-1), "also visits expert")
        axes.set_aspect("equal")
        axes.yaxis.set_major_locator(MaxNLocator(min(len(others), 8), integer=True))
        axes.set_ylabel("of the tokens of expert")
        if len(others) <= 10:
            _numbers(axes, np.where(np.eye(len(others), dtype=bool), np.nan, 100 * others), 7, digits=0)
    return svg(figure, description)


def _matrix(axes: Axes, rgba: np.ndarray, x_label: str) -> None:
    axes.grid(False)
    axes.imshow(rgba, aspect="auto", interpolation="none")
    rows, columns = rgba.shape[:2]
    for at in range(columns + 1):
        axes.axvline(at - 0.5, color=COLOURS["paper"], linewidth=1 if columns <= NUMBERED else 0.3)
    for at in range(rows + 1):
        axes.axhline(at - 0.5, color=COLOURS["paper"], linewidth=1 if rows <= NUMBERED else 0.3)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(min(columns, 8), integer=True))
    axes.set_xlabel(x_label)


def _numbers(axes: Axes, values: np.ndarray, size: float, digits: int = 1) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=size)


def photograph(pixels_CSS: np.ndarray) -> str:
    """A picture as the encoder saw it, as a data URI."""
    image = Image.fromarray(np.ascontiguousarray(pixels_CSS.transpose(1, 2, 0)))
    image = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return _uri(image.convert("RGB"), "JPEG", quality=85)


def cells(values_N: np.ndarray, colours: Sequence[str]) -> str | None:
    """The tokens of a picture as a grid of see-through colours, one pixel a cell; None where they are no square.

    Args:
        values_N: Which colour each cell has, row by row.
        colours: Hex colours.
    """
    side = isqrt(len(values_N))
    if side * side != len(values_N):
        return None
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])[values_N]
    rgba = np.concatenate([np.rint(255 * rgb), np.full((len(values_N), 1), OVERLAY)], axis=1)
    return _uri(Image.fromarray(rgba.astype(np.uint8).reshape(side, side, 4)), "PNG")


def ramp(steps: int) -> list[str]:
    """Colours from light to dark, for a count from 1 to ``steps``."""
    scale = matplotlib.colormaps["viridis"]
    return [matplotlib.colors.to_hex(scale(1 - at / max(1, steps - 1))) for at in range(steps)]


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
