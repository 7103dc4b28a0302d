"""The random numbers of training: every rank begins with its own, and a resumed run goes on with them.

Noisy routers and dropout draw from the generators of the process, which belong to nobody; here they get an owner, the
model's seed.
"""

from __future__ import annotations

import random
from typing import Any

import lightning
import numpy
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.train.strategy import reader

State = dict[str, Any]


class Chance(Callback):
    """Put the generators of all ranks into checkpoints, and begin with a rank's own seed where there are none.

    That is at the start of a run, and where another number of ranks goes on. Drawing begins with the first batch, which
    is also where checkpoints are written (:class:`mm1.train.checkpoints.BetweenSteps`); stand before what writes them.
    Ranks that share layers draw alike.
    """

    def __init__(self) -> None:
        self.begun = False
        self.saved: list[State] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Nothing of this run has been drawn from here on, and nothing of the one before after it was saved."""
        if self.begun:
            return
        self.begun = True
        rank, ranks = reader(trainer.strategy)
        if len(self.saved) == trainer.world_size:
            restore(self.saved[rank * trainer.world_size // ranks], pl_module.device)  # alike where layers are shared
        else:
            begin(pl_module.seed, trainer.global_step, rank)
        self.saved = []

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather ``checkpoint["mm1"]["chance"]``; all ranks call this, one after another in ``ranks``."""
        states = [state(pl_module.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, state(pl_module.device))
        checkpoint["mm1"]["chance"] = states

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep them for the first batch."""
        self.saved = checkpoint["mm1"]["chance"]


def begin(*seeds: int) -> None:
    """Seed the generators of this process by numbers that no other rank or place in the run has."""
    seed = int(numpy.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def state(device: torch.device) -> State:
    """The generators of this process as plain values and tensors, those of other devices left out."""
    kind, keys, place, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(numpy.int64)), place, has_gauss, gauss),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(saved: State, device: torch.device) -> None:
    """Go on from :func:`state`; on another kind of device its generator stays as it is."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = saved["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(saved["torch"].cpu())
    if device.type == "cuda" and saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"].cpu(), device)
