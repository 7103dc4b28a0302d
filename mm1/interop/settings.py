"""A ``config.json`` read key by key, so that whatever is wrong in it is told by file, key and value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1.errors import UserError

MOST = 2**31 - 1  # sizes beyond it are no sizes


class Settings:
    """What a published model says of itself.

    Args:
        values: The keys of ``config.json``.
        where: What the file is called in errors.
        defaults: Values of keys that are absent, as transformers has them for the family.
    """

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values, self.where, self.defaults = values, where, defaults or {}

    def get(self, key: str) -> Any:
        """The value as it stands there, else the default, else None."""
        return self.values.get(key, self.defaults.get(key))

    def whole(self, key: str, least: int = 1, most: int = MOST) -> int:
        """A whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fault(key, f"a whole number, at least {least}" + (f" and at most {most}" if most < MOST else ""))
        return value

    def whole_or_none(self, key: str) -> int | None:
        """A whole number, or None where it is null or absent."""
        return None if self.get(key) is None else self.whole(key)

    def real(self, key: str) -> float:
        """A number above 0."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.fault(key, "a number above 0")
        return float(value)

    def section(self, key: str) -> dict[str, Any]:
        """An object inside this one; empty where it is null or absent."""
        value = self.get(key)
        if not isinstance(value, dict | None):
            raise self.fault(key, "a JSON object")
        return value or {}

    def flag(self, key: str) -> bool:
        """True or false; false where it is null or absent."""
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise self.fault(key, "true or false")
        return bool(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a setting that this project does not compute; absent and null are the first allowed value.

        Raises:
            UserError: It is there and has another value.
        """
        value = self.get(key)
        if value is not None and value not in allowed:
            ways = " or ".join(json.dumps(one) for one in allowed) or "null"
            raise self.fault(key, f"{ways}, the only way that mm1 computes")

    def fault(self, key: str, expected: str) -> UserError:
        """The sentence about one key."""
        found = json.dumps(self.get(key))[:80] if key in self.values or key in self.defaults else "nothing"
        return UserError(f"{self.where} has {found} at {key}; expected {expected}")


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        UserError: It is not there or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a model in Hugging Face layout, which has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values
