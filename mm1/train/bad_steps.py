"""Steps whose loss or gradient is no number, or whose loss leaps: they never reach the weights, on any rank.

All ranks judge the same sums, so that they stop, skip or roll back together. PaLM (Chowdhery 2022, section 5.1) found
spikes to come from a batch *and* a state of the weights, and went on from an earlier checkpoint without the batches.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import fields
from statistics import median
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mm1.batch import Batch
from mm1.errors import UserError, at_least
from mm1.runs import Run
from mm1.train.callbacks import AfterSteps
from mm1.train.checkpoints import settle
from mm1.train.module import Objective

log = logging.getLogger(__name__)

Policy = Literal["stop", "skip", "roll_back"]
RECENT, FEW = 64, 16  # good losses that a leap is measured from, and how many it takes
RECOVERED = 50  # good steps after which earlier bad ones are forgotten


class BadSteps(AfterSteps):
    """Judge every step before the optimizer takes it; on an accelerator that waits for its backward pass.

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

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Hold on to the batch, not to its pictures."""
        self.micro_batches.append(batch.with_images(batch.images_ICHW[:0]))

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Hold on to the loss."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Judge the step, and take its gradients away if it is bad.

        Raises:
            UserError: Training is to stop.
        """
        assert isinstance(pl_module, Objective)
        losses, parameters = torch.stack(self.losses), [p for group in optimizer.param_groups for p in group["params"]]
        sums = pl_module.step_sums
        assert sums is not None
        mine = ~torch.isfinite(losses).all()
        told = torch.stack([mine, ~_finite(parameters), sums.cross_entropy, sums.targets]).double()
        lost, broken, cross_entropy, targets = pl_module.over_ranks(told).tolist()
        loss = cross_entropy / max(1, targets)
        why = self._verdict(bool(lost), bool(broken), loss)
        if why is None:
            self.recent.append(loss)
            self.good += 1
            self.bad = 0 if self.good >= RECOVERED else self.bad
            return
        self.bad, self.good = self.bad + 1, 0
        step = trainer.global_step + 1
        if bool(mine) or not lost:
            self._keep(trainer, step, why)
        self._stop_or_tell(trainer, step, why)
        for parameter in parameters:
            parameter.grad = None  # AdamW leaves what has none as it is, moments and all
        self.rolls_back = self.policy == "roll_back"

    def _verdict(self, lost: bool, broken: bool, loss: float) -> str | None:
        if lost or not math.isfinite(loss):
            return f"loss is {loss if not math.isfinite(loss) else math.nan}"
        if broken:
            return "gradient is not finite"
        if self.spike_nats is not None and len(self.recent) >= FEW:
            usual = median(self.recent)
            if loss > usual + self.spike_nats:
                return f"loss is {loss:.3f}, usual is {usual:.3f}"
        return None

    def _keep(self, trainer: lightning.Trainer, step: int, why: str) -> None:
        folder = Run(trainer.default_root_dir).bad_steps
        folder.mkdir(exist_ok=True)
        names = [field.name for field in fields(Batch) if field.name != "images_ICHW"]
        batches = [{name: getattr(batch.to("cpu"), name) for name in names} for batch in self.micro_batches]
        losses = [float(loss) for loss in self.losses]
        kept = {"step": step, "rank": trainer.global_rank, "why": why, "losses": losses, "micro_batches": batches}
        torch.save(kept, folder / f"step-{step:08d}-rank-{trainer.global_rank}.pt")

    def _stop_or_tell(self, trainer: lightning.Trainer, step: int, why: str) -> None:
        run = Run(trainer.default_root_dir)
        found = f"the {why.replace(' is ', f' of step {step} is ', 1)}; its batch is in {run.bad_steps}"
        if self.policy != "stop" and self.bad < self.most:
            log.warning("%s; %s", found, "skipped" if self.policy == "skip" else "rolled back to the last checkpoint")
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
        if self.rolls_back:
            self.rolls_back = False
            roll_back(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What later steps are judged by."""
        return {"recent": list(self.recent), "bad": self.bad, "good": self.good}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.recent = deque(state_dict["recent"], maxlen=RECENT)
        self.bad, self.good = state_dict["bad"], state_dict["good"]


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
    trainer.strategy.load_model_state_dict(checkpoint, strict=True)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, before in zip(trainer.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate


def _finite(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Whether this rank's part of all gradients is, as a tensor, so that nothing is waited for."""
    found = [cast(Tensor, p.grad) for p in parameters if p.grad is not None]
    gradients = [g.to_local() if isinstance(g, DTensor) else g for g in found]
    gradients = [g for g in gradients if g.numel()]
    device = parameters[0].device
    if not gradients:
        return torch.tensor(True, device=device)
    return torch.isfinite(torch.stack(list(torch._foreach_norm(gradients))).sum())
