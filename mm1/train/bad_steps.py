"""Steps whose loss or gradient is no number, or whose loss leaps: they never reach the weights, on any rank.

All ranks judge the same sums, so that they stop, skip or roll back together. PaLM (Chowdhery 2022, section 5.1) found
spikes to come from a batch *and* a state of the weights, and went on from an earlier checkpoint without the batches.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, Literal

import lightning
import torch
from torch import Tensor

from mm1.batch import Batch
from mm1.errors import UserError, at_least
from mm1.model.stored import upgrade
from mm1.runs import Run
from mm1.train.callbacks import AfterSteps
from mm1.train.checkpoints import BeforeSaving, settle, write_file
from mm1.train.masters import MasterAdamW
from mm1.train.module import Objective

log = logging.getLogger(__name__)

Policy = Literal["stop", "skip", "roll_back"]
RECENT, FEW = 64, 16  # good losses that a leap is measured from, and how many it takes
RECOVERED = 50  # good steps after which earlier bad ones are forgotten


class Later:
    """Numbers on their way from the device; the host waits for them alone, not for what the device does after them.

    Args:
        numbers: float64[N].
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.there = numbers, None
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self.there is not None:
            self.there.synchronize()
        return self.numbers.tolist()


@dataclass
class Pending:
    """A step that was judged on its device and not yet heard of.

    Args:
        trainer: Whose.
        step: Which.
        limit: The largest loss that is no leap.
        verdict: Ranks with a loss that is no number, with a gradient that is none, the loss, whether it was ours.
        micro_batches: Its batches without pictures.
        losses: Their losses.
    """

    trainer: lightning.Trainer
    step: int
    limit: float
    verdict: Later
    micro_batches: list[Batch]
    losses: Tensor


class BadSteps(AfterSteps, BeforeSaving):
    """Judge every step before the optimizer takes it.

    The tokens, positions and document ids of a bad step are kept in ``bad_steps/`` of the run folder, one file for each
    rank that it came from.

    Args:
        policy: ``stop`` training; ``skip`` the optimizer's step; or ``roll_back``, where weights and the optimizer's
            moments become those of the last checkpoint again while data, schedule and count of steps go on, so that
            the batches since then are skipped.
        spike_nats: A loss so far above the median of the 64 before is bad as well; None takes any that is a number.
        most: After so many bad steps, with fewer than 50 good ones in a row between them, training stops anyhow.
    """

    def __init__(self, policy: Policy = "stop", spike_nats: float | None = None, most: int = 10) -> None:
        at_least(1, {"most_bad_steps": most})
        if spike_nats is not None:
            at_least(0, {"spike_nats": spike_nats})
        self.policy, self.spike_nats, self.most = policy, spike_nats, most
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.bad = self.good = 0
        self.micro_batches: list[Batch] = []
        self.losses: list[Tensor] = []
        self.rolls_back = False
        self.pending: Pending | None = None
        self.all_bad: Tensor | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Hold on to the batch, not to its pictures."""
        images = batch.images_ICHW
        self.micro_batches.append(batch.with_images(images.new_empty(0, *images.shape[1:])))  # a slice would keep them

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Hold on to the loss."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Judge the step; an optimizer that takes the verdict on its device gets it there, and no host waits.

        The host reads it one step later then, while the device has that step to compute.

        Raises:
            UserError: Training is to stop.
        """
        assert isinstance(pl_module, Objective)
        self._heed()
        sums, losses = pl_module.step_sums, torch.stack(self.losses)
        assert sums is not None
        mine = ~torch.isfinite(losses).all()
        norm = pl_module.gradient_norm(optimizer)
        told = torch.stack([mine, ~torch.isfinite(norm), sums.cross_entropy, sums.targets]).double()
        lost, broken, cross_entropy, targets = pl_module.over_ranks(told)
        loss = cross_entropy / targets.clamp(min=1)
        limit = self._limit()
        bad = (lost > 0) | (broken > 0) | ~torch.isfinite(loss) | (loss > limit)
        bad = bad if self.all_bad is None else bad | self.all_bad
        pl_module.bad = bad
        verdict = torch.stack([lost, broken, loss, mine.double()])
        step = trainer.global_step + 1
        self.pending = Pending(trainer, step, limit, Later(verdict), self.micro_batches, losses)
        if obeys_on_device(optimizer, verdict):
            assert isinstance(optimizer, MasterAdamW)
            optimizer.skip = bad
            # until the host has heard, what must not go on from a bad step does not
            self.all_bad = None if self.policy == "skip" else bad
            if self.rolls_back:
                optimizer.skip = torch.ones_like(bad)
        elif self._heed():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # what has none is left as it is, moments and all

    def _limit(self) -> float:
        """The largest loss that is no leap."""
        if self.spike_nats is None or len(self.recent) < FEW:
            return math.inf
        return median(self.recent) + self.spike_nats

    def _heed(self) -> bool:
        """Hear what became of the step before, and whether it was bad; nothing where there is nothing new."""
        pending, self.pending = self.pending, None
        if pending is None:
            return False
        lost, broken, loss, mine = pending.verdict.read()
        why = self._verdict(bool(lost), bool(broken), loss, pending.limit)
        if why is None:
            self.recent.append(loss)
            self.good += 1
            self.bad = 0 if self.good >= RECOVERED else self.bad
            return False
        self.bad, self.good = self.bad + 1, 0
        if mine or not lost:
            self._keep(pending, why)
        self._stop_or_tell(pending.trainer, pending.step, why)
        self.rolls_back = self.policy == "roll_back"
        return True

    def _verdict(self, lost: bool, broken: bool, loss: float, limit: float) -> str | None:
        if lost or not math.isfinite(loss):
            return f"loss is {loss if not math.isfinite(loss) else math.nan}"
        if broken:
            return "gradient is not finite"
        if loss > limit:
            return f"loss is {loss:.3f}, usual is {limit - (self.spike_nats or 0):.3f}"
        return None

    def _keep(self, pending: Pending, why: str) -> None:
        trainer, step = pending.trainer, pending.step
        folder = Run(trainer.default_root_dir).bad_steps
        names = [field.name for field in fields(Batch) if field.name != "images_ICHW"]
        batches = [{name: getattr(batch.to("cpu"), name) for name in names} for batch in pending.micro_batches]
        losses = pending.losses.tolist()
        kept = {"step": step, "rank": trainer.global_rank, "why": why, "losses": losses, "micro_batches": batches}
        try:
            folder.mkdir(exist_ok=True)
            fault = write_file(kept, folder / f"step-{step:08d}-rank-{trainer.global_rank}.pt")
        except OSError as error:
            fault = error.strerror
        if fault is not None:  # what the loss has become is to be told first
            log.warning("the batch of step %d cannot be kept in %s (%s)", step, folder, fault)

    def _stop_or_tell(self, trainer: lightning.Trainer, step: int, why: str) -> None:
        run = Run(trainer.default_root_dir)
        found = f"the {why.replace(' is ', f' of step {step} is ', 1)}; its batch is in {run.bad_steps}"
        if self.policy != "stop" and self.bad < self.most:
            if trainer.is_global_zero:
                what = "skipped" if self.policy == "skip" else "rolled back to the last checkpoint"
                log.warning("%s; %s", found, what)
            return
        if trainer.is_global_zero:
            run.update(diverged=True)
        often = "" if self.policy == "stop" else f" bad step number {self.bad} (most_bad_steps is {self.most}),"
        raise UserError(
            f"{found},{often} the weights before it are in the last checkpoint; expected a finite loss: "
            f"try a lower model.optimizer.lr or a longer warmup_steps"
        )

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """Roll back, and forget the step."""
        self.micro_batches, self.losses = [], []
        if last:
            self._heed()
        self._go_back(trainer)

    def before_saving(self, trainer: lightning.Trainer) -> None:
        """Hear of the step at hand, so that no checkpoint takes the place of the one that is gone back to."""
        self._heed()
        self._go_back(trainer)

    def _go_back(self, trainer: lightning.Trainer) -> None:
        if self.rolls_back:
            # the step after a bad one was begun from weights that are undone, so its verdict counts for nothing
            self.rolls_back, self.all_bad, self.pending = False, None, None
            roll_back(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What later steps are judged by, the step at hand included."""
        self._heed()
        return {"recent": list(self.recent), "bad": self.bad, "good": self.good}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.recent = deque(state_dict["recent"], maxlen=RECENT)
        self.bad, self.good = state_dict["bad"], state_dict["good"]


def obeys_on_device(optimizer: torch.optim.Optimizer, verdict: Tensor) -> bool:
    """Whether the optimizer leaves a bad step out by itself, so that the host may hear of it later."""
    return isinstance(optimizer, MasterAdamW) and verdict.is_cuda


def roll_back(trainer: lightning.Trainer) -> None:
    """Take weights and moments from the last checkpoint; rates stay where the schedule is. All ranks call this.

    Raises:
        UserError: There is no checkpoint yet.
    """
    settle(trainer)
    path = Run(trainer.default_root_dir).last
    if not path.exists():
        raise UserError(
            f"there is no {path} to roll back to; expected one before the first bad step (save_every_n_steps)"
        )
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    upgrade(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=True)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, before in zip(trainer.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
