"""What happens beside the objective: progress, benchmarks on the way, a word when something looks wrong.

One class each; none changes the loss. Metrics and the run folder are in :mod:`mm1.train.metrics`, checkpoints in
:mod:`mm1.train.checkpoints`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError, at_least
from mm1.model.mm1 import MM1
from mm1.runs import Run
from mm1.train.metrics import Metrics
from mm1.train.module import Objective
from mm1.train.strategy import Sharded

log = logging.getLogger(__name__)

Evaluator = Callable[[MM1, Tokenizer], dict[str, float]]
BLIND_NATS = 0.005


class AfterSteps(Callback):
    """Calls :meth:`after_step` once a step, when its last micro-batch has been trained."""

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """What happens after ``step``; ``last`` says that none follows."""
        raise NotImplementedError

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Tell micro-batches from steps."""
        assert isinstance(pl_module, Objective)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, pl_module, trainer.global_step, trainer.global_step >= trainer.max_steps)


class Progress(AfterSteps):
    """One line of where the run is: on a terminal a line that renews itself, in a log one every ten seconds."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self.started_s = self.shown_s = time.monotonic()
        self.first_step = trainer.global_step

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """Show the step, at most so often."""
        terminal, now_s = sys.stderr.isatty(), time.monotonic()
        if not trainer.is_global_zero or not (last or now_s - self.shown_s > (0.5 if terminal else 10)):
            return
        self.shown_s, sums = now_s, module.step_sums
        assert sums is not None
        loss = float(sums.cross_entropy / sums.targets.clamp(min=1))
        step_s = (now_s - self.started_s) / (step - self.first_step)
        left_s = step_s * (trainer.max_steps - step)
        told = f"step {step}/{trainer.max_steps}  loss {loss:.3f}  {step_s:.2f} s/step"
        told += f"  {_span(left_s)} left"
        sys.stderr.write(f"\r\033[K{told}" + "\n" * last if terminal else f"{told}\n")
        sys.stderr.flush()


class Evaluate(AfterSteps):
    """Run benchmarks on the model as it is and log ``eval/<task>``, for curves and for :class:`KeepBest`.

    Args:
        evaluator: Scores a model by task; ``eval.harness.Benchmarks`` is one.
        every_n_steps: How often.
    """

    def __init__(self, evaluator: Evaluator, every_n_steps: int = 1000) -> None:
        at_least(1, {"every_n_steps": every_n_steps})
        self.evaluator, self.every_n_steps = evaluator, every_n_steps

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse what would wait for ever: one rank evaluates, which has only its part of a sharded model.

        Raises:
            UserError: The strategy shards the model.
        """
        if isinstance(trainer.strategy, Sharded):
            raise UserError(
                "trainer.callbacks has Evaluate, which needs the whole model on one rank, and trainer.strategy shards "
                "it; expected one of them: evaluate checkpoints with mm1-eval"
            )

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """Evaluate, when it is time."""
        if step % self.every_n_steps and not last:
            return
        scores: dict[str, float] = {}
        if trainer.is_global_zero:
            module.model.eval()
            with torch.no_grad():
                scores = self.evaluator(module.model, trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
            module.model.train()
            scores = {f"eval/{task}": float(score) for task, score in scores.items()}
            Run(trainer.default_root_dir).log("eval", step, **scores)
        module.log_dict(trainer.strategy.broadcast(scores))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Metrics):
                callback.restart_clock()


class WatchSight(Callback):
    """Say so while held-out loss is the same with wrong pictures: a low loss hides that pictures are ignored."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Look at the gap of the validation that ended."""
        gap = trainer.callback_metrics.get("val/sight_gap")
        if trainer.is_global_zero and gap is not None and gap < BLIND_NATS:
            log.warning(
                "step %d: right and wrong pictures differ by %.4f nats a token, the model ignores what it sees so far; "
                "normal early on, later look at the connector's rate (model.optimizer.parts) and data.weights",
                trainer.global_step,
                gap,
            )


def _span(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {int(seconds % 60):02d} s" if minutes else f"{int(seconds)} s"
