"""A corpus of shards, wired to the Trainer: mixture, packing and loaders, and the checks that it fits the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch.distributed

from mm1.batch import Batch, ImageSpec
from mm1.data.augment import Augment
from mm1.data.mixture import DEFAULT_WEIGHTS, Unit
from mm1.data.plan import check_resumes, merged
from mm1.data.recipe import Recipe, WhenExhausted, check_corpus, open_shards
from mm1.data.shards import read_manifest
from mm1.data.streams import HeldOut, Loader, Windows
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import at_least
from mm1.template import Template
from mm1.train.strategy import reader


class MM1Data(lightning.LightningDataModule):
    """Packed rows for pre-training (captions, interleaved, text) and for instruction tuning (weights ``{sft: 100}``).

    Args:
        corpus: Folder that ``mm1-data shards`` wrote.
        image_spec: The model's; linked, never set by hand.
        weights: Share of each source, by default captions 45, interleaved 45, text 10. One may be a schedule: weights
            by the step of the optimizer, such as ``{0: 45, 1000: 30}``, with even changes in between.
        unit: What the weights count: all positions, text tokens, pictures, documents, or rows, each of one source.
        row_tokens: Positions of a row.
        images_per_row: Most pictures of a row.
        rows_per_step: Rows of an optimizer step, over all ranks and micro-batches.
        streams: Independent plans that share the rows of a step. A rank plans those that its rows belong to, so with as
            many streams as ranks, or a multiple, planning costs no more on many GPUs than on one.
        seed: Decides the order of documents.
        look_ahead: Documents of each source that wait to be packed; more of them fill rows better.
        max_epochs: How often a source may be read through, such as ``{text: 4}``; without end where it is not named.
        when_exhausted: What happens then: ``repeat`` its documents after all, ``drop`` it, so that its share goes to
            the others, or ``stop`` training.
        augment: Random crops and mirrorings of training pictures; none if not given.
        blank: Replace every picture by a grey one, to train the baseline that answers from the question alone.
        val_rows: Most validation rows of a source.
        val_batch_rows: Rows of a validation batch.
        workers: Processes that fetch ahead; 0 fetches in the training process.
        threads: Threads that prepare pictures, per worker.
        timeout_s: A worker that gives nothing for so long counts as hanging, and training stops; 0 waits for ever.
        max_damaged_share: Share of documents that may be damaged before training stops; each is left out, counted and
            listed in ``quarantine.jsonl``.
    """

    def __init__(
        self,
        corpus: Path,
        image_spec: ImageSpec,
        *,
        row_tokens: int,
        rows_per_step: int,
        weights: dict[str, float | dict[int, float]] | None = None,
        unit: Unit = "positions",
        images_per_row: int = 16,
        streams: int = 1,
        seed: int = 0,
        look_ahead: int = 64,
        max_epochs: dict[str, int] | None = None,
        when_exhausted: WhenExhausted = "repeat",
        augment: Augment | None = None,
        blank: bool = False,
        val_rows: int = 64,
        val_batch_rows: int = 8,
        workers: int = 1,
        threads: int = 2,
        timeout_s: float = 900,
        max_damaged_share: float = 0.001,
    ) -> None:
        super().__init__()
        at_least(1, {"data.val_batch_rows": val_batch_rows, "data.threads": threads})
        least = {
            "val_rows": val_rows,
            "workers": workers,
            "timeout_s": timeout_s,
            "max_damaged_share": max_damaged_share,
        }
        at_least(0, {f"data.{name}": value for name, value in least.items()})
        self.recipe = Recipe(
            corpus=Path(corpus),
            image_spec=image_spec,
            row_tokens=row_tokens,
            rows_per_step=rows_per_step,
            weights={**DEFAULT_WEIGHTS} if weights is None else {**weights},
            unit=unit,
            images_per_row=images_per_row,
            streams=streams,
            seed=seed,
            look_ahead=look_ahead,
            max_epochs=max_epochs or {},
            when_exhausted=when_exhausted,
            augment=augment,
            blank=blank,
        )
        self.val_rows, self.val_batch_rows, self.workers, self.threads = val_rows, val_batch_rows, workers, threads
        self.timeout_s, self.max_damaged_share = timeout_s, max_damaged_share
        self.state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Check the corpus against model and settings, before anything is fetched.

        Raises:
            UserError: They do not fit.
        """
        manifest = read_manifest(self.recipe.corpus)
        self.tokenizer = Tokenizer(find(self.recipe.corpus))
        self.template = Template.of(manifest["template"], self.recipe.corpus) if "template" in manifest else None
        check_corpus(manifest, self.tokenizer.fingerprint, self.recipe)
        self.shards = open_shards(self.recipe, "train")
        open_shards(self.recipe, "val")

    def train_dataloader(self) -> Loader:
        """This rank's micro-batches, from where the last trained step ended."""
        assert self.trainer is not None
        rank, ranks = reader(self.trainer.strategy)
        windows = Windows(
            self.recipe,
            rank=rank,
            ranks=ranks,
            micro_batches=self.trainer.accumulate_grad_batches,
            state=self.state,
            threads=self.threads,
            shards=self.shards,
        )
        self.loader = Loader(windows, self.workers, self.timeout_s)
        return self.loader

    def val_dataloader(self) -> Loader:
        """This rank's validation batches, the same every time."""
        assert self.trainer is not None
        rank, ranks = reader(self.trainer.strategy)
        held_out = HeldOut(
            self.recipe,
            rows=self.val_rows,
            batch_rows=self.val_batch_rows,
            rank=rank,
            ranks=ranks,
            threads=self.threads,
        )
        return Loader(held_out, min(self.workers, 1), self.timeout_s)

    def trained(self, batch: Batch) -> None:
        """Take note that ``batch`` was trained on; what was only fetched ahead does not count."""
        self.state = batch.state or self.state

    def state_dict(self) -> dict[str, Any]:
        """The place in the data after the last trained step, of the streams of all ranks; all ranks call this."""
        states: Iterable[dict[str, Any] | None] = [self.state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[dict[str, Any] | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, self.state)
            states = gathered
        known = [state for state in states if state is not None]
        return {"state": merged(known) if known else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on any number of ranks.

        Raises:
            UserError: The place belongs to another corpus, mixture or seed.
        """
        self.state = state_dict["state"]
        if self.state is not None:
            check_resumes(self.state, self.recipe, self.shards)
