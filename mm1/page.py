"""The pages that people look at share one style sheet, ``mm1/page.css``, and one way to be made from templates.

A page is one HTML file that needs nothing else: styles and pictures stand inside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape


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
