"""Out of memory: what filled it, and the knobs to turn, in the order in which they cost least."""

from __future__ import annotations

import re
from typing import Any

import lightning
import torch

from mm1.errors import UserError
from mm1.train.strategy import reader


def out_of_memory(error: BaseException, trainer: lightning.Trainer) -> UserError | None:
    """What to tell of an error, if memory that ran out is what it is about, on an accelerator or not."""
    device = isinstance(error, torch.OutOfMemoryError)
    host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if not (device or host):
        return None
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    what = f" for {asked[1]} more" if asked else ""
    return UserError(
        f"out of {'memory of the ' + trainer.strategy.root_device.type if device else 'memory'}{what} at step "
        f"{trainer.global_step + 1}, {_sizes(trainer)}; expected what fits: raise trainer.accumulate_grad_batches, "
        f"then set checkpointing (of model.model.decoder and .vision) to selective, then to true, then lower "
        f"data.row_tokens or data.images_per_row, or share the model among ranks (trainer.strategy: "
        f"mm1.train.strategy.Sharded)"
    )


def _sizes(trainer: lightning.Trainer) -> str:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    recipe, model = data.recipe, trainer.lightning_module.model
    rows = recipe.rows_per_step / (reader(trainer.strategy)[1] * trainer.accumulate_grad_batches)
    ways = {name: str(getattr(model, name).checkpointing).lower() for name in ("decoder", "vision")}
    return (
        f"with {rows:g} rows a micro-batch, {recipe.row_tokens} positions (data.row_tokens) and up to "
        f"{recipe.images_per_row} pictures a row, checkpointing {ways['decoder']} (vision {ways['vision']}), "
        f"{sum(p.numel() for p in trainer.lightning_module.parameters()) / 1e6:.3g} M parameters"
    )
