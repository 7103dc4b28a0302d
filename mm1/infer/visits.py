"""Which experts a position visits, layer by layer, for a page that shows routing token by token (MM1, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mm1.model.decoder import Decoder
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import Router
from mm1.model.moe.routing import Routing

Visits = dict[int, tuple[int, ...]]


Weights = dict[int, tuple[tuple[int, float], ...]]


@contextmanager
def weighed(decoder: Decoder) -> Iterator[Weights]:
    """The same as :func:`watched` with weights: what an expert's answer is multiplied by, the heaviest first.

    Where a position falls into sub-tokens, an expert's weight is the mean over all of them.
    """
    weights: Weights = {}
    with _told(decoder, partial(_weigh, weights)):
        yield weights


@contextmanager
def watched(decoder: Decoder) -> Iterator[Visits]:
    """Experts that the last position read has visited, by layer (counted from 0), the highest share first.

    The value is renewed whenever the decoder reads one row of one position; it is empty for a dense decoder. Where a
    position falls into sub-tokens, the experts of all of them are told, the highest mean share first.
    """
    visits: Visits = {}
    with _told(decoder, partial(_note, visits)):
        yield visits


@contextmanager
def _told(decoder: Decoder, tell: Callable[..., None]) -> Iterator[None]:
    """``tell(layer, router, inputs, routing)`` whenever a router has decided."""
    hooks = [
        module.register_forward_hook(partial(tell, index))
        for index, layer in enumerate(decoder.layers)
        if isinstance(layer.ffn, Mixture)
        for module in layer.ffn.modules()
        if isinstance(module, Router)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weigh(weights: Weights, layer: int, module: Router, inputs: tuple[Any, ...], routing: Routing) -> None:
    rows = routing.choice.rows(module.experts)
    experts_R = torch.repeat_interleave(torch.arange(module.experts, device=rows.counts_E.device), rows.counts_E)
    weight_E = torch.zeros(module.experts, device=rows.weights_R.device).index_add_(
        0, experts_R, rows.weights_R.float()
    )
    mean_E = (weight_E / routing.shares_BTE[..., 0].numel()).tolist()
    found = [(expert, weight) for expert, weight in enumerate(mean_E) if weight > 0]
    weights[layer] = tuple(sorted(found, key=lambda pair: -pair[1]))


def _note(visits: Visits, layer: int, module: nn.Module, inputs: tuple[Any, ...], routing: Routing) -> None:
    shares_ME = routing.shares_BTE.detach().flatten(0, 1)
    hot_E = routing.choice.hot(*shares_ME.shape).amax(0)
    found = hot_E.nonzero()[:, 0].tolist()
    share = shares_ME.mean(0).tolist()
    visits[layer] = tuple(sorted(found, key=lambda expert: -share[expert]))
