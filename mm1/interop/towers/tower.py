"""What every layout is read into, and how names are translated with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm1.errors import UserError


@dataclass(frozen=True)
class Tower:
    """A published image tower.

    Args:
        class_path: The class of :mod:`mm1.model.vision` that builds it.
        init_args: With what, but for ``weights``.
        weights: By the names that class reads, in mapped files where the source allows.
    """

    class_path: str
    init_args: dict[str, Any]
    weights: dict[str, Tensor]


def translated(
    weights: Mapping[str, Tensor], names: Mapping[str, str], dropped: Iterable[str], origin: str
) -> dict[str, Tensor]:
    """The same tensors under other names.

    Args:
        weights: By the names they were published under.
        names: Patterns of those, and the names they get; ``qkv#0``, ``qkv#1`` are joined in that order to ``qkv``.
        dropped: Patterns of what the tower has no use for.
        origin: Where they come from, for the error.

    Raises:
        UserError: A name that stands in neither list.
    """
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if any(re.fullmatch(pattern, name) for pattern in dropped):
            continue
        found = ((re.fullmatch(pattern, name), ours) for pattern, ours in names.items())
        place = next((match.expand(ours) for match, ours in found if match), None)
        if place is None:
            raise UserError(f"{origin} holds {name}, whose place in an image tower is not known (source)")
        whole, _, piece = place.partition("#")
        pieces.setdefault(whole, {})[piece] = tensor
    return {
        name: next(iter(parts.values())) if len(parts) == 1 else torch.cat([parts[key] for key in sorted(parts)])
        for name, parts in pieces.items()
    }
