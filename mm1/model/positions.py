"""Learned position tables that follow their grid: weights from 27 x 27 patches fit an encoder that sees 48 x 48.

MM1 fine-tunes its encoder at higher resolutions this way (section 5, position-embedding interpolation).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

FOLLOWED = "followed_grid"


def follow_grid(module: nn.Module, name: str, grid: int, prefix_tokens: int = 0) -> None:
    """Let a position table loaded into ``module`` follow its grid: weights from 27 x 27 patches fit 48 x 48.

    Args:
        module: Owner of the table, a parameter [.., prefix + grid * grid, width].
        name: Path of the table within it.
        grid: Patches a side of ``module``.
        prefix_tokens: Leading entries that belong to no patch (a class token's), kept as they are.
    """

    hook = partial(_resample_before_load, name=name, grid=grid, prefix_tokens=prefix_tokens)
    module.register_load_state_dict_pre_hook(hook)
    setattr(module, FOLLOWED, (name, grid, prefix_tokens))


def resampled(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The same weights with every position table as large as ``model`` wants it; as they are where all fit."""
    tables = {}
    for owner, module in model.named_modules():
        name, grid, prefix_tokens = getattr(module, FOLLOWED, ("", 0, 0))
        path = f"{owner}.{name}" if owner else name
        if name and path in state:
            table = state[path]
            if (fitting := resample_positions(table, grid, prefix_tokens)) is not table:
                tables[path] = fitting
    return {**state, **tables} if tables else state


def _resample_before_load(
    _: nn.Module, state: dict[str, Any], prefix: str, *__: Any, name: str, grid: int, prefix_tokens: int
) -> None:
    if prefix + name in state:
        state[prefix + name] = resample_positions(state[prefix + name], grid, prefix_tokens)


def resample_positions(table: Tensor, grid: int, prefix_tokens: int = 0) -> Tensor:
    """A table [.., prefix + p * p, V] for ``grid`` patches a side, bicubic; what is no square is left as it is."""
    patches = table.shape[-2] - prefix_tokens
    side = isqrt(max(patches, 0))
    if side == grid or side < 1 or side**2 != patches:
        return table
    prefix, square = table[..., :prefix_tokens, :], table[..., prefix_tokens:, :]
    map_1VSS = square.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    map_1VSS = interpolate(map_1VSS, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    square = map_1VSS.permute(0, 2, 3, 1).reshape(*table.shape[:-2], grid**2, -1).to(table.dtype)
    return torch.cat((prefix, square), dim=-2)
