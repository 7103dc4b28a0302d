"""The pages that people look at share one style sheet, ``mm1/page.css``, and one way to be made from templates.

A page is one HTML file that needs nothing else: styles and pictures stand inside.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

FEW = ("#2e6fb7", "#d9762b", "#3a9a78", "#b0509e", "#c9a227", "#6a5acd", "#c8504f", "#5aa9c9", "#8a6d4b", "#7f9c3b")


def palette(experts: int) -> list[str]:
    """A colour for each expert: ten chosen ones, or hues all around in three brightnesses."""
    if experts <= len(FEW):
        return list(FEW[:experts])
    hues = [(0.618 * at) % 1 for at in range(experts)]  # neighbours lie far apart on the circle
    shades = (
        colorsys.hsv_to_rgb(hue, *((0.75, 0.85), (0.55, 0.7), (0.85, 0.55))[at % 3]) for at, hue in enumerate(hues)
    )
    return ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]


def environment(package: str, *filters: Callable[..., Any]) -> Environment:
    """The templates of a package, which include ``page.css``; values are escaped, a name that is missing is an error.

    Args:
        package: Its dotted name; templates lie beside its modules.
        filters: Functions that templates may call by their names.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("mm1", ".")]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({function.__name__: function for function in filters})
    return made


def write(path: Path, page: str) -> Path:
    """Write a page, and the folder it lies in if that is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
