"""Held-out loss by source, and what pictures are worth: the same rows with each picture in another's place.

``sight_gap`` is blind minus sighted loss in nats a target. It is zero for a model that ignores its pictures, however
low its loss, and it costs one more forward pass: the cheapest evidence that sight is being learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mm1.batch import Batch
from mm1.model.mm1 import MM1


class HeldOutLoss:
    """Sums over validation batches."""

    def __init__(self) -> None:
        self.sources: tuple[str, ...] = ()
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: MM1, batch: Batch) -> None:
        """Score one batch, and again with its pictures, all their views, rolled by one where it has at least two."""
        self.sources = batch.sources
        sighted = model.losses(batch)
        self._sum("loss_S", sighted.cross_entropy_S)
        self._sum("targets_S", sighted.targets_S)
        images, views = len(batch.images_ICHW), model.views.count
        if images > views or model.in_step:
            blind = model.losses(batch.with_images(batch.images_ICHW.roll(views, dims=0)))
        if images > views:
            self._sum("gap_S", blind.cross_entropy_S - sighted.cross_entropy_S)
            self._sum("gap_targets_S", sighted.targets_S)

    def _sum(self, name: str, value_S: Tensor) -> None:
        self.sums[name] = self.sums[name] + value_S.double() if name in self.sums else value_S.double()

    def summary(self, over_ranks: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """``loss``, ``sight_gap``, and both by source, over the batches of all ranks; empty without any batch."""
        none_S = torch.zeros(len(self.sources), dtype=torch.float64, device=device)
        names = ("loss_S", "targets_S", "gap_S", "gap_targets_S")
        sums = {name: over_ranks(self.sums.get(name, none_S)).tolist() for name in names}
        values: dict[str, float] = {}
        for key, total_S, targets_S in (
            ("loss", sums["loss_S"], sums["targets_S"]),
            ("sight_gap", sums["gap_S"], sums["gap_targets_S"]),
        ):
            if sum(targets_S) > 0:
                values[key] = sum(total_S) / sum(targets_S)
            for source, total, targets in zip(self.sources, total_S, targets_S, strict=True):
                if targets > 0:
                    values[f"{key}/{source}"] = total / targets
        return values
