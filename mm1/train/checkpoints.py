"""Checkpoints: when they are written, and what makes them readable without Lightning (:mod:`mm1.model.stored`).

They are one file, which the first rank writes while training waits, or a folder, which all ranks write while it goes
on (:mod:`mm1.train.background`).

A step ends with its metrics, its validation and its benchmarks; a checkpoint of step n is written after all of these,
when the first batch of step n + 1 is already there. So a killed run that goes on from it neither repeats nor lacks a
line of metrics.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.errors import UserError, at_least
from mm1.model.pieces import MOMENTS, WEIGHTS
from mm1.model.stored import CHECKPOINT_FORMAT
from mm1.runs import Run
from mm1.template import Template
from mm1.train.background import Background, unwritten
from mm1.train.shard_writer import sync, take_away
from mm1.train.strategy import Sharded

log = logging.getLogger(__name__)

Layout = Literal["auto", "whole", "sharded"]
BIG_PARAMETERS = 300_000_000  # from where on a whole checkpoint of fp32 stops training for longer than a few seconds


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


class BeforeSaving(Callback):
    """Has something to settle before any checkpoint is written."""

    def before_saving(self, trainer: lightning.Trainer) -> None:
        """All ranks call this, after the same step."""
        raise NotImplementedError


class SaveLast(BetweenSteps):
    """Write ``checkpoints/last.ckpt`` every so many steps and at the end; keep older ones as ``step-00001000.ckpt``.

    Args:
        every_n_steps: How often.
        keep_last: How many of the newest to keep; 1 keeps ``last.ckpt`` alone.
        keep_every_n_steps: Keep those of every so many steps for ever, a multiple of ``every_n_steps``; 0 keeps none.
        layout: ``whole``: one file. ``sharded``: a folder, and ``last.ckpt`` is a link to it. ``auto``: sharded where
            ranks share the model (:class:`mm1.train.strategy.Sharded`) or it is so big that training would wait for
            long, a file otherwise.

    Raises:
        UserError: A number that is too small, or no multiple.
    """

    def __init__(
        self, every_n_steps: int = 500, keep_last: int = 1, keep_every_n_steps: int = 0, layout: Layout = "auto"
    ) -> None:
        super().__init__()
        at_least(1, {"save_every_n_steps": every_n_steps, "keep_last": keep_last})
        at_least(0, {"keep_every_n_steps": keep_every_n_steps})
        if keep_every_n_steps % every_n_steps:
            raise UserError(
                f"keep_every_n_steps is {keep_every_n_steps}; expected a multiple of save_every_n_steps, which is "
                f"{every_n_steps}"
            )
        self.saved_step: int | None = None
        self.layout, self.prepared = layout, False
        self.background: Background | None = None
        self.every_n_steps, self.keep_last, self.keep_every_n_steps = every_n_steps, keep_last, keep_every_n_steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin what writes beside training, where checkpoints are sharded."""
        super().on_train_start(trainer, pl_module)
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        big = isinstance(trainer.strategy, Sharded) or parameters >= BIG_PARAMETERS
        if self.layout == "sharded" or (self.layout == "auto" and big):
            run = Run(trainer.default_root_dir)
            place = (trainer.global_rank, trainer.world_size)
            device = trainer.strategy.root_device
            self.background = Background(run, device, lambda step: self._prune(run, step), *place)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """What is being copied may be changed only then; gradients are there, so the step has hidden the copy."""
        if self.background is not None:
            self.background.before_change()

    def between(self, trainer: lightning.Trainer, step: int, last: bool) -> None:
        """Save when it is time."""
        if self.background is not None:
            self.background.poll()
            if not self.prepared:
                self.background.prepare(_tensors(trainer))
                self.prepared = True
        if last or step % self.every_n_steps == 0:
            self.save(trainer, step)
        if last:
            self.wait()

    def save(self, trainer: lightning.Trainer, step: int) -> None:
        """Save now; what is no longer to be kept goes when the new one is whole."""
        run = Run(trainer.default_root_dir)
        save(trainer, run.last)
        self.saved_step = step
        if self.background is not None or not trainer.is_global_zero:
            return
        if self.keep_last > 1 or self._for_ever(step):
            _name_too(run.last, run.kept(step))
        self._prune(run, step)

    def wait(self) -> None:
        """Until the checkpoint that was begun last is whole.

        Raises:
            UserError: It cannot be written.
        """
        if self.background is not None:
            self.background.wait()

    def _prune(self, run: Run, step: int) -> None:
        earlier = {found: path for found, path in run.all_kept().items() if found <= step and not self._for_ever(found)}
        newest = self.keep_last if self.keep_last > 1 else 0
        in_use = {name.resolve() for name in (run.last, run.best)}
        for found in sorted(earlier)[: max(0, len(earlier) - newest)]:
            if earlier[found].resolve() not in in_use:
                take_away(earlier[found])

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:
        """What was begun is finished, whatever ends training."""
        if self.background is not None:
            self.background.close()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Likewise."""
        self.on_exception(trainer)

    def _for_ever(self, step: int) -> bool:
        return self.keep_every_n_steps > 0 and step % self.keep_every_n_steps == 0

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
        checkpoint["mm1"] = {"format": CHECKPOINT_FORMAT, "model": self.model, "tokenizer": tokenizer}
        if pl_module.origin_json is not None:
            checkpoint["mm1"]["origin"] = pl_module.origin_json
        template: Any = pl_module.template
        if template is not None:
            checkpoint["mm1"]["template"] = template.record()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A resumed run remembers what the one before knew."""
        pl_module.origin_json = checkpoint["mm1"].get("origin")
        if "template" in checkpoint["mm1"]:
            settle: Any = pl_module.speak
            path = trainer.ckpt_path
            settle(Template.of(checkpoint["mm1"]["template"], path), path)


def save(trainer: lightning.Trainer, path: Path) -> None:
    """Write a checkpoint beside ``path``, then rename it, so that a kill leaves the old one or the new one.

    All ranks call this. A sharded one is written meanwhile, and found to be impossible later.

    Raises:
        UserError: It cannot be written, such as on a disk that is full; the old one is as it was.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BeforeSaving):
            callback.before_saving(trainer)
    if (background := _background(trainer)) is not None:
        changing = [name for name, _ in trainer.lightning_module.named_buffers()]
        background.save(trainer.global_step, path, lambda: _in_parts(trainer, _dumped), changing)
        return
    checkpoint = _dumped(trainer)
    fault = write_file(checkpoint, path) if trainer.is_global_zero else None
    fault = trainer.strategy.broadcast(fault)  # so that none waits for a rank that has stopped
    if fault is not None:
        raise UserError(unwritten(path, checkpoint["global_step"], fault))


def settle(trainer: lightning.Trainer) -> None:
    """Wait until the checkpoint that was begun last is whole, on all ranks, which all call this.

    Raises:
        UserError: It cannot be written.
    """
    if (background := _background(trainer)) is not None:
        background.wait()


def _dumped(trainer: lightning.Trainer) -> dict[str, Any]:
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def _tensors(trainer: lightning.Trainer) -> dict[str, Any]:
    """As :func:`_dumped`, of what takes memory."""
    return _in_parts(
        trainer,
        lambda trainer: {
            WEIGHTS: trainer.strategy.lightning_module_state_dict(),
            MOMENTS: [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers],
        },
    )


def _in_parts(trainer: lightning.Trainer, make: Callable[[lightning.Trainer], dict[str, Any]]) -> dict[str, Any]:
    """What it makes of a strategy that neither sends nor copies tensors."""
    strategy = trainer.strategy
    with strategy.in_parts() if isinstance(strategy, Sharded) else contextlib.nullcontext():
        return make(trainer)


def _background(trainer: lightning.Trainer) -> Background | None:
    return next((saving.background for saving in trainer.callbacks if isinstance(saving, SaveLast)), None)  # type: ignore[attr-defined]


def write_file(content: dict[str, Any], path: Path) -> str | None:
    """Write a file through to the disk and only then give it its name; else leave nothing and say why."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of some faults of the file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        causes = (error, error.__context__, error.__cause__)
        system = next((cause for cause in causes if isinstance(cause, OSError)), None)
        return (system.strerror if system is not None else None) or str(error).splitlines()[0]
    return None


def _name_too(path: Path, name: Path) -> None:
    """A second name for a file, or a copy where the file system has no second names."""
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if name.is_dir():  # sharded, of an earlier life
        take_away(name)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
