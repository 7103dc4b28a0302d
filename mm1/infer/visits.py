"""Which experts a position visits, layer by layer, for a page that shows routing token by token (MM1, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from mm1.model.decoder import Decoder
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import Router
from mm1.model.moe.routing import Routing

Visits = dict[int, tuple[int, ...]]


@contextmanager
def watched(decoder: Decoder) -> Iterator[Visits]:
    """Experts that the last position read has visited, by layer (counted from 0), the highest share first.

    The value is renewed whenever the decoder reads one row of one position; it is empty for a dense decoder. Where a
    position falls into sub-tokens, the experts of all of them are told, the highest mean share first.
    """
    visits: Visits = {}
    hooks = [
        module.register_forward_hook(partial(_note, visits, index))
        for index, layer in enumerate(decoder.layers)
        if isinstance(layer.ffn, Mixture)
        for module in layer.ffn.modules()
        if isinstance(module, Router)
    ]
    try:
        yield visits
    finally:
        for hook in hooks:
            hook.remove()


def _note(visits: Visits, layer: int, module: nn.Module, inputs: tuple[Any, ...], routing: Routing) -> None:
    shares_ME = routing.shares_BTE.detach().flatten(0, 1)
    hot_E = routing.choice.hot(*shares_ME.shape).amax(0)
    found = hot_E.nonzero()[:, 0].tolist()
    share = shares_ME.mean(0).tolist()
    visits[layer] = tuple(sorted(found, key=lambda expert: -share[expert]))
