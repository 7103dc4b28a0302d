"""A corpus of shards, wired to the Trainer: mixture, packing and loaders, and the checks that it fits the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from mm1.batch import Batch, ImageSpec
from mm1.data.augment import Augment
from mm1.data.mixture import DEFAULT_WEIGHTS, Unit
from mm1.data.shards import ShardSet, read_manifest
from mm1.data.streams import HeldOut, Loader, Plan, Recipe, Windows, check_fits
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError, at_least


class MM1Data(lightning.LightningDataModule):
    """Packed rows for pre-training (captions, interleaved, text) and for instruction tuning (weights ``{sft: 100}``).

    Args:
        corpus: Folder that ``mm1-data shards`` wrote.
        image_spec: The model's; linked, never set by hand.
        weights: Share of each source, by default captions 45, interleaved 45, text 10.
        unit: What the weights count: all positions, text tokens, pictures or documents.
        row_tokens: Positions of a row.
        images_per_row: Most pictures of a row.
        rows_per_step: Rows of an optimizer step, over all ranks and micro-batches.
        seed: Decides the order of documents.
        look_ahead: Documents that wait to be packed; more of them fill rows better, and the realised mix lags further.
        augment: Random crops and mirrorings of training pictures; none if not given.
        blank: Replace every picture by a grey one, to train the baseline that answers from the question alone.
        val_rows: Most validation rows of a source.
        val_batch_rows: Rows of a validation batch.
        workers: Processes that fetch ahead; 0 fetches in the training process.
        threads: Threads that prepare pictures, per worker.
    """

    def __init__(
        self,
        corpus: Path,
        image_spec: ImageSpec,
        *,
        row_tokens: int,
        rows_per_step: int,
        weights: dict[str, float] | None = None,
        unit: Unit = "positions",
        images_per_row: int = 16,
        seed: int = 0,
        look_ahead: int = 16,
        augment: Augment | None = None,
        blank: bool = False,
        val_rows: int = 64,
        val_batch_rows: int = 8,
        workers: int = 1,
        threads: int = 2,
    ) -> None:
        super().__init__()
        positive = {"rows_per_step": rows_per_step, "look_ahead": look_ahead, "val_batch_rows": val_batch_rows}
        at_least(1, {f"data.{name}": value for name, value in {**positive, "threads": threads}.items()})
        at_least(0, {"data.seed": seed, "data.val_rows": val_rows, "data.workers": workers})
        self.recipe = Recipe(
            corpus=Path(corpus),
            image_spec=image_spec,
            row_tokens=row_tokens,
            rows_per_step=rows_per_step,
            weights=DEFAULT_WEIGHTS if weights is None else weights,
            unit=unit,
            images_per_row=images_per_row,
            seed=seed,
            look_ahead=look_ahead,
            augment=augment,
            blank=blank,
        )
        self.val_rows, self.val_batch_rows, self.workers, self.threads = val_rows, val_batch_rows, workers, threads
        self.state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Check the corpus against model and settings, before anything is fetched.

        Raises:
            UserError: They do not fit.
        """
        manifest = read_manifest(self.recipe.corpus)
        self.tokenizer = Tokenizer(find(self.recipe.corpus))
        check_corpus(manifest, self.tokenizer, self.recipe)
        Plan(self.recipe)
        for name in self.recipe.shares:
            check_fits(ShardSet(self.recipe.corpus, name, "val"), name, self.recipe)

    def train_dataloader(self) -> Loader:
        """This rank's micro-batches, from where the last trained step ended."""
        assert self.trainer is not None
        windows = Windows(
            self.recipe,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
            micro_batches=self.trainer.accumulate_grad_batches,
            state=self.state,
            threads=self.threads,
        )
        return Loader(windows, self.workers)

    def val_dataloader(self) -> Loader:
        """This rank's validation batches, the same every time."""
        assert self.trainer is not None
        held_out = HeldOut(
            self.recipe,
            rows=self.val_rows,
            batch_rows=self.val_batch_rows,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
            threads=self.threads,
        )
        return Loader(held_out, min(self.workers, 1))

    def trained(self, batch: Batch) -> None:
        """Take note that ``batch`` was trained on; what was only fetched ahead does not count."""
        self.state = batch.state or self.state

    def state_dict(self) -> dict[str, Any]:
        """The place in the data after the last trained step."""
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            UserError: The place belongs to another corpus, mixture or seed.
        """
        self.state = state_dict["state"]
        if self.state is not None:
            Plan(self.recipe).load(self.state)


def check_corpus(manifest: Mapping[str, Any], tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Refuse a corpus that was written for another model or changed since.

    Raises:
        UserError: The first difference, with both values and the setting.
    """
    for name in recipe.shares:
        if name not in manifest["streams"]:
            raise UserError(
                f"{recipe.corpus} has no stream {name!r}, only {', '.join(manifest['streams'])}; "
                f"set data.weights to the streams that are there"
            )
    spec = recipe.image_spec
    fixed: list[tuple[str, object, str]] = [
        ("tokenizer", tokenizer.fingerprint, "data.corpus"),
        ("tokens_per_image", spec.tokens, "model.model.connector.init_args.tokens"),
    ]
    stored: list[tuple[str, object, str]] = [
        ("image_px", spec.size_px, "model.model.vision"),
        ("resize", spec.resize, "model.model.vision"),
        ("interpolation", spec.interpolation, "model.model.vision"),
    ]
    for key, expected, setting in fixed if manifest["keep_pictures"] else fixed + stored:
        if manifest[key] != expected:
            raise UserError(
                f"{recipe.corpus} was written with {key} = {manifest[key]}, this run has {expected}: "
                f"change {setting} or write the shards again"
            )
