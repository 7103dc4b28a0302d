"""What the routers of a trained model do with held-out rows, token by token, seen through hooks on them.

Every router says who goes where in one form (:class:`mm1.model.moe.routing.Routing`), so that a new one is recorded
without a line here. A layer that routes parts of tokens (MH-MoE) shows as P sub-tokens a token, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm1.batch import IMAGE, Batch
from mm1.data.mixture import DEFAULT_WEIGHTS
from mm1.data.recipe import Recipe, check_corpus
from mm1.data.shards import read_manifest
from mm1.data.streams import HeldOut
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import Mixture, MoE
from mm1.model.moe.routers import Router
from mm1.model.moe.routing import Places, Routing

PICTURES_PER_ROW = 2  # kept to be drawn


@dataclass(frozen=True)
class Picture:
    """A picture of the rows.

    Args:
        pixels_CSS: As the encoder saw it, uint8.
        first: Its first token among the M recorded ones; the others follow.
    """

    pixels_CSS: np.ndarray
    first: int


@dataclass(frozen=True)
class Recorded:
    """Routing of M tokens that are not padding.

    Args:
        layers: Indices of the L sparse layers in the decoder.
        hot_MPE: For each layer bool[M, P, E], true where a sub-token is with an expert.
        best_M: For each layer int[M], the expert that has the largest share of a token.
        tokens_M: Ids, ``IMAGE`` at pictures.
        sources_M: Which of ``sources`` a token is of.
        sources: Names.
        pictures: Some of the pictures.
    """

    layers: list[int]
    hot_MPE: list[np.ndarray]
    best_M: list[np.ndarray]
    tokens_M: np.ndarray
    sources_M: np.ndarray
    sources: tuple[str, ...]
    pictures: list[Picture]

    @property
    def image_M(self) -> np.ndarray:
        """Whether a token is a picture's."""
        return self.tokens_M == IMAGE

    @property
    def experts(self) -> int:
        """Experts E of a layer."""
        return int(self.hot_MPE[0].shape[-1])


class Recorder:
    """Hooks on the routers of a model, one a sparse layer.

    Args:
        model: Whose.

    Raises:
        UserError: It has none.
    """

    def __init__(self, model: MM1) -> None:
        self.model, self.routers = model, routers_of(model)
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.hooks = [router.register_forward_hook(self._hook(layer)) for layer, router in self.routers.items()]

    def _hook(self, layer: int) -> Any:
        mixture = self.model.decoder.layers[layer].ffn
        assert isinstance(mixture, Mixture)
        capacity = next((module.capacity for module in mixture.modules() if isinstance(module, MoE)), None)

        def look(router: torch.nn.Module, given: tuple[torch.Tensor, Places], routing: Routing) -> None:
            shares_SE = routing.shares_BTE.flatten(0, -2)
            experts = shares_SE.shape[-1]
            choice = capacity(routing, given[1], experts, False) if capacity else routing.choice
            self.seen[layer] = choice.hot(len(shares_SE), experts), shares_SE

        return look

    @torch.inference_mode()
    def __call__(self, batches: Iterable[Batch]) -> Recorded:
        """Run the model over batches of held-out rows and let go of it.

        Raises:
            UserError: The rows hold nothing.
        """
        device, layers = next(self.model.parameters()).device, list(self.routers)
        hot: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        best: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        tokens: list[np.ndarray] = []
        sources: list[np.ndarray] = []
        pictures: list[Picture] = []
        names: tuple[str, ...] = ()
        count = 0
        for batch in batches:
            self.model(batch.to(device))
            valid_T = (batch.segments_BT > 0).flatten()
            for layer in layers:
                hot_TPE, best_T = _by_token(*self.seen[layer], len(valid_T))
                hot[layer].append(hot_TPE[valid_T].numpy())
                best[layer].append(best_T[valid_T].numpy())
            tokens.append(batch.tokens_BT.flatten()[valid_T].numpy())
            sources.append(batch.sources_BT.flatten()[valid_T].numpy())
            pictures += _pictures(batch, tokens[-1], self.model.connector.tokens, count)
            names, count = batch.sources, count + len(tokens[-1])
        for hook in self.hooks:
            hook.remove()
        if not count:
            raise UserError("the corpus has no held-out rows; expected some to route (--corpus)")
        hot_MPE, best_M = ([np.concatenate(of[layer]) for layer in layers] for of in (hot, best))
        return Recorded(layers, hot_MPE, best_M, np.concatenate(tokens), np.concatenate(sources), names, pictures)


def routers_of(model: MM1) -> dict[int, Router]:
    """The router of each sparse layer, by the layer's index.

    Raises:
        UserError: The decoder is dense, or all its tokens visit all experts.
    """
    mixtures = {i: layer.ffn for i, layer in enumerate(model.decoder.layers) if isinstance(layer.ffn, Mixture)}
    if not mixtures:
        raise UserError("this run's decoder is dense, nothing in it is routed; expected a run with model.decoder.moe")
    found = {i: next((m for m in mixture.modules() if isinstance(m, Router)), None) for i, mixture in mixtures.items()}
    routers = {i: router for i, router in found.items() if router is not None}
    if not routers:
        raise UserError(
            "every token of this run visits all experts; expected a run whose model.decoder.moe has routers"
        )
    return routers


def held_out(data: dict[str, Any], model: MM1, tokenizer: Tokenizer, corpus: Path | None, rows: int) -> Iterator[Batch]:
    """Held-out rows, one a batch.

    Args:
        data: ``data`` of the run's configuration.
        model: Whose pictures are prepared.
        tokenizer: That of the checkpoint.
        corpus: Another corpus than the run's; all its streams then.
        rows: Most rows of each source.

    Raises:
        UserError: The corpus is not there or not for this model.
    """
    where = corpus or Path(data["corpus"])
    manifest = read_manifest(where)
    sizes = manifest if corpus else data
    held = {name: 1.0 for name, splits in manifest["streams"].items() if splits["val"]["documents"]}
    weights = held if corpus else data["weights"] or DEFAULT_WEIGHTS
    recipe = Recipe(
        corpus=where,
        image_spec=model.image_spec,
        weights=weights,
        row_tokens=sizes["row_tokens"],
        images_per_row=sizes["images_per_row"],
        rows_per_step=1,
        blank=bool(data.get("blank")),
    )
    check_corpus(manifest, tokenizer.fingerprint, recipe)
    return iter(HeldOut(recipe, rows=rows, batch_rows=1, rank=0, ranks=1, threads=1))


def _by_token(hot_SE: torch.Tensor, shares_SE: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the S = T * P sub-tokens of a layer: bool[T, P, E], and the best expert of each token."""
    hot_TPE = hot_SE.unflatten(0, (tokens, -1)).cpu()
    shares_TPE = shares_SE.float().unflatten(0, (tokens, -1)).cpu()
    weight_TE = (hot_TPE * (1 + shares_TPE)).sum(1)  # visits first; shares decide between equals
    return hot_TPE.bool(), weight_TE.argmax(-1)


def _pictures(batch: Batch, tokens_M: np.ndarray, tokens_per_image: int, before: int) -> list[Picture]:
    places = np.flatnonzero(tokens_M == IMAGE)[::tokens_per_image]
    shown = zip(batch.images_ICHW[:PICTURES_PER_ROW], places, strict=False)
    return [Picture(pixels.numpy(), before + int(first)) for pixels, first in shown]
