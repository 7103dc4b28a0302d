"""What settings of steps have in common: bounds in order, lists in files, extras that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from mm1.errors import UserError


def in_order(low_name: str, low: float | None, high_name: str, high: float | None) -> None:
    """Refuse a lower bound above the upper one, which nothing could pass; None is no bound.

    Raises:
        UserError: That.
    """
    if low is not None and high is not None and low > high:
        raise UserError(f"{low_name} is {low} and {high_name} is {high}; expected the first to be the lower")


def share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: A number outside 0..1.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}; expected a share between 0 and 1")


def there(name: str, paths: Iterable[Path]) -> tuple[Path, ...]:
    """The paths, made whole for processes that work elsewhere; each exists.

    Raises:
        UserError: One that does not.
    """
    paths = tuple(Path(path).absolute() for path in paths)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; expected a file or folder at {name}")
    return paths


def lines(path: Path) -> list[str]:
    """The lines of a list in a file, stripped; blank ones and those that begin with ``#`` are no entries.

    Raises:
        UserError: It is no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; expected a list, one entry a line") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def installed(module: str) -> None:
    """Refuse to begin without a package of the extra ``steps``.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed; expected the extra steps: pip install 'mm1[steps]'")
