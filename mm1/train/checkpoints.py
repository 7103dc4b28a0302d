"""Checkpoints: when they are written, and what makes them readable without Lightning (:mod:`mm1.model.stored`).

A step ends with its metrics, its validation and its benchmarks; a checkpoint of step n is written after all of these,
when the first batch of step n + 1 is already there. So a killed run that goes on from it neither repeats nor lacks a
line of metrics.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.model.stored import FORMAT
from mm1.runs import Run

log = logging.getLogger(__name__)


class BetweenSteps(Callback):
    """Calls :meth:`between` once after every step when all that belongs to the step is done."""

    def __init__(self) -> None:
        self.done_step = 0

    def between(self, trainer: lightning.Trainer, step: int, last: bool) -> None:
        """What happens after ``step``; ``last`` at the end of training."""
        raise NotImplementedError

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A resumed run starts where its checkpoint was written."""
        self.done_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The first batch after a step has come."""
        if trainer.global_step > self.done_step:
            self.done_step = trainer.global_step
            self.between(trainer, self.done_step, last=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """No batch follows the last step."""
        self.between(trainer, trainer.global_step, last=True)


class SaveLast(BetweenSteps):
    """Write ``checkpoints/last.ckpt`` every so many steps and at the end.

    Args:
        every_n_steps: How often.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps

    def between(self, trainer: lightning.Trainer, step: int, last: bool) -> None:
        """Save when it is time."""
        if last or step % self.every_n_steps == 0:
            save(trainer, Run(trainer.default_root_dir).last)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches from the steps: the batch that had come is not trained yet, and the split may have changed."""
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))


class KeepBest(BetweenSteps):
    """Write ``checkpoints/best.ckpt`` whenever a logged number is better than ever before.

    Args:
        monitor: The number's name, such as ``eval/vqa`` or ``val/loss``.
        mode: Whether larger (``max``) or smaller (``min``) is better.
    """

    def __init__(self, monitor: str, mode: Literal["max", "min"] = "max") -> None:
        super().__init__()
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None

    def between(self, trainer: lightning.Trainer, step: int, last: bool) -> None:
        """Save when it is better; at the end, say so if there was nothing of that name to go by."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None and last and self.best is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            log.warning("KeepBest kept nothing: %r was never logged, only %s", self.monitor, known)
        if value is None:
            return
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best = float(value)
            save(trainer, Run(trainer.default_root_dir).best)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.best = state_dict["best"]


class Describe(Callback):
    """Put into every checkpoint what :func:`mm1.load` needs to read it: the model's YAML and the tokenizer.

    With them goes where the model's parts came from, if they are not our own (:mod:`mm1.interop.origin`).

    Args:
        model: The resolved YAML of the model's class-path tree.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add ``checkpoint["mm1"]``."""
        tokenizer = trainer.datamodule.tokenizer.proto  # type: ignore[attr-defined]
        checkpoint["mm1"] = {"format": FORMAT, "model": self.model, "tokenizer": tokenizer}
        if pl_module.origin_json is not None:
            checkpoint["mm1"]["origin"] = pl_module.origin_json

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A resumed run remembers what the one before knew."""
        pl_module.origin_json = checkpoint["mm1"].get("origin")


def save(trainer: lightning.Trainer, path: Path) -> None:
    """Write a checkpoint beside ``path``, then rename it, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    trainer.save_checkpoint(temporary, weights_only=False)
    if trainer.is_global_zero:
        os.replace(temporary, path)
    trainer.strategy.barrier("checkpoint renamed")
