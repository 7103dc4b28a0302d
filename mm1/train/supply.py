"""What a run says about its data on the way: how full rows get, what was damaged, that a source has come to its end.

All ranks come to the same verdict after the same step, so that none waits for one that has stopped.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from typing import Any

import lightning
import torch.distributed
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.data.plan import Plan, trial
from mm1.errors import UserError
from mm1.runs import Run, json_lines
from mm1.train.callbacks import AfterSteps
from mm1.train.datamodule import MM1Data
from mm1.train.module import Objective
from mm1.train.strategy import reader

log = logging.getLogger(__name__)

FEW = 10  # damaged documents that stop no run, whatever share they are so far
TRIAL_ROWS = 128
FULL = 0.97


class TellPacking(Callback):
    """At the start, plan some rows and say how full they get beside how full they can get.

    The figures also stand in ``run.json``.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Plan, and warn where pictures run out before positions do."""
        if not trainer.is_global_zero:
            return
        data: MM1Data = trainer.datamodule  # type: ignore[attr-defined]
        recipe = data.recipe
        outlook, fill = trial(recipe, data.shards, trainer.global_step, TRIAL_ROWS)
        told = {"fill": fill, "fill_bound": outlook.fill, "images_needed": outlook.images}
        Run(trainer.default_root_dir).update(packing=told)
        log.info(
            "rows of %d positions and %d pictures: the mix needs %.1f pictures a row, can fill %.1f %%, fills %.1f %%",
            recipe.row_tokens,
            recipe.images_per_row,
            outlook.images,
            100 * outlook.fill,
            100 * fill,
        )
        if outlook.fill < FULL:
            log.warning(
                "pictures run out before positions do, %.0f %% of every row is padding: raise data.images_per_row to "
                "%d (and write the shards with it), lower data.row_tokens to %d, or give more of data.weights to text",
                100 * (1 - outlook.fill),
                math.ceil(outlook.images),
                int(recipe.row_tokens * outlook.fill),
            )


class Quarantine(AfterSteps):
    """List damaged documents in ``quarantine.jsonl``, count them by reason, and stop when there are too many.

    Their positions were padding in the rows that they belonged to; everything else is trained on.
    """

    def __init__(self) -> None:
        self.documents = 0  # both counts since the start, over all ranks
        self.damaged: Counter[str] = Counter()
        self.step = [0, 0]
        self.found: list[dict[str, Any]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget what was listed after the step that training goes on from: it comes again."""
        listed = Run(trainer.default_root_dir).quarantine
        if trainer.is_global_zero and listed.exists():
            lines = [line for line in json_lines(listed) if line and line["step"] < trainer.global_step]
            listed.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Take note of the micro-batch."""
        self._note(batch, trainer, "train")
        self.step = [self.step[0] + len(batch.documents) + len(batch.damaged), self.step[1] + len(batch.damaged)]

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """Add up the ranks, and judge.

        Raises:
            UserError: More are damaged than ``data.max_damaged_share`` allows.
        """
        documents, damaged = map(int, module.over_hosts(self.step))
        self.step, self.documents = [0, 0], self.documents + documents
        if not damaged:
            return
        new = self._write(trainer)
        self.damaged.update(f"{found['source']}: {found['reason']}" for found in new if found["split"] == "train")
        share, count = trainer.datamodule.max_damaged_share, self.damaged.total()  # type: ignore[attr-defined]
        if count > share * self.documents and (count > FEW or share == 0):
            (reason, most), *_ = self.damaged.most_common(1)
            listed = Run(trainer.default_root_dir).quarantine
            raise UserError(
                f"{count} of {self.documents} documents were damaged, {most} of them {reason}; expected at most a "
                f"share of {share:g} (data.max_damaged_share): {listed} lists them, write their shards again"
            )

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take note of a validation batch, once."""
        if not trainer.sanity_checking:
            self._note(batch, trainer, "val")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write down what validation met."""
        assert isinstance(pl_module, Objective)
        if pl_module.over_hosts([len(self.found)])[0]:
            self._write(trainer)

    def _note(self, batch: Batch, trainer: lightning.Trainer, split: str) -> None:
        rank, ranks = reader(trainer.strategy)
        if trainer.global_rank != rank * trainer.world_size // ranks:
            return  # of ranks that read the same rows the first tells
        about = {"step": trainer.global_step, "rank": trainer.global_rank, "split": split}
        for source, where, reason in batch.damaged:
            self.found.append({**about, "source": source, "where": where, "reason": reason})

    def _write(self, trainer: lightning.Trainer) -> list[dict[str, Any]]:
        """What all ranks found since last time; the first rank writes it down."""
        gathered = [self.found]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.found)
        self.found = []
        found = [one for some in gathered for one in some]
        if trainer.is_global_zero:
            with Run(trainer.default_root_dir).quarantine.open("a") as lines:
                lines.writelines(json.dumps(one) + "\n" for one in found)
            log.warning("%d damaged documents left out, the first is %s", len(found), found[0]["where"])
        return found

    def state_dict(self) -> dict[str, Any]:
        """What counts from the start."""
        return {"documents": self.documents, "damaged": dict(self.damaged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.documents, self.damaged = state_dict["documents"], Counter(state_dict["damaged"])


class EndOfData(AfterSteps):
    """Stop after the step in which a source came to its end, where the data says so (``data.when_exhausted``)."""

    def __init__(self) -> None:
        self.ended: str | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse to go on where nothing is left.

        Raises:
            UserError: The checkpoint is of the end of a source, and it may still be read no more often.
        """
        data: MM1Data = trainer.datamodule  # type: ignore[attr-defined]
        if data.state and (ended := Plan(data.recipe, data.shards, None, data.state).ended):
            raise UserError(f"{ended!r} was read through {_ALLOWED}")

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The last micro-batch of a step says what its rows left."""
        self.ended = batch.state["ended"] if batch.state else None

    def after_step(self, trainer: lightning.Trainer, module: Objective, step: int, last: bool) -> None:
        """Ask all ranks, as one may be there before the others."""
        data: MM1Data = trainer.datamodule  # type: ignore[attr-defined]
        if not data.recipe.max_epochs or data.recipe.when_exhausted == "repeat":
            return
        if module.over_hosts([self.ended is not None])[0]:
            trainer.should_stop = True
            if self.ended is not None:
                log.warning(
                    "training ends after step %d of %d: %r was read through %s",
                    step,
                    trainer.max_steps,
                    self.ended,
                    _ALLOWED,
                )


_ALLOWED = "as often as data.max_epochs allows; raise it, or set data.when_exhausted to repeat or drop"
