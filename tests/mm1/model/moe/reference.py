"""A sparse layer as its definition reads, token by token and expert by expert, and small layers to compare with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mm1.model.moe import routers
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Router
from mm1.model.moe.routing import Choice, Places, TokenChoice

# One choice of options for each way through a router. A new router has to be entered here.
OPTIONS: dict[type[Router], list[dict[str, Any]]] = {
    routers.ByTask: [{"tasks": ["one", "other"]}],
    routers.Cosine: [{}, {"renormalise": True, "space_width": 3}, {"gate": "sigmoid"}],
    routers.ExpertChoice: [{}, {"group": "batch"}, {"at_inference": "batch"}],
    routers.ForceBalanced: [{}, {"weights": "even"}],
    routers.GShard: [{}],
    routers.NoisyTopK: [{}],
    routers.STMoE: [{}],
    routers.Sigmoid: [{}, {"groups": 2}],
    routers.Switch: [{"jitter": 0.2}],
    routers.TopK: [{}, {"renormalise": False}],
    routers.Topology: [{}],
}
TOP_K: dict[type[Router], int] = {routers.Switch: 1}  # 2 for the others


def concrete(kind: type[Router] = Router) -> list[type[Router]]:
    """Every router there is that can be built."""
    below = [router for child in kind.__subclasses__() for router in concrete(child)]
    built_in = kind.__module__.startswith("mm1.") and not getattr(kind, "__abstractmethods__", None)
    return ([kind] if built_in else []) + below


def moe(
    kind: type[Router] = routers.TopK,
    *,
    experts: int = 4,
    top_k: int | None = None,
    width: int = 4,
    ffn_width: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    router: dict[str, Any] | None = None,
    **options: Any,
) -> MoE:
    """A layer with weights that make a difference."""
    top_k = TOP_K.get(kind, 2) if top_k is None else top_k
    layer = MoE(width, ffn_width, experts=experts, top_k=top_k, router=partial(kind, **(router or {})), **options)
    layer.router.reset()
    for index, parameter in enumerate(matrix for matrix in layer.parameters() if matrix.ndim > 1):
        torch.nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(seed + index))
    return layer.to(dtype)


def tokens(rows: int, length: int, width: int = 4, seed: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, T, D]."""
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def text(rows: int, length: int, sources: int = 1) -> Places:
    """No padding, no pictures, and all of the first source."""
    return replace(Places.of_text(torch.ones(rows, length, dtype=torch.bool)), sources=sources)


def answer(layer: MoE, x_BTD: Tensor, choice: Choice) -> Tensor:
    """What the layer's experts make of ``x_BTD`` under ``choice``."""
    x_MD = x_BTD.flatten(0, 1)
    y_MD = torch.zeros_like(x_MD)
    for token, expert, weight in _visits(choice):
        gate, up = (layer.experts.gate_up[expert] @ x_MD[token]).chunk(2)
        y_MD[token] += weight * (layer.experts.down[expert] @ (silu(gate) * up))
    return y_MD.view_as(x_BTD)


def _visits(choice: Choice) -> list[tuple[int, int, Tensor]]:
    if isinstance(choice, TokenChoice):
        kept_MK = torch.ones_like(choice.experts_MK) if choice.kept_MK is None else choice.kept_MK
        return [
            (token, int(choice.experts_MK[token, k]), choice.weights_MK[token, k])
            for token in range(kept_MK.shape[0])
            for k in range(kept_MK.shape[1])
            if kept_MK[token, k]
        ]
    return [
        (int(token), expert, choice.weights_EN[expert, n])
        for expert, chosen_N in enumerate(choice.tokens_EN)
        for n, token in enumerate(chosen_N)
        if choice.kept_EN is None or choice.kept_EN[expert, n]
    ]
