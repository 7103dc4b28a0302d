"""What a plan is of: a training YAML read without training's door, and ranks as training would lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1.errors import UserError, at_least
from mm1.model.build import build, read
from mm1.model.mm1 import MM1

BYTES = {"32-true": 4, "bf16-mixed": 4}


@dataclass(frozen=True)
class Layout:
    """The ranks: ``replicate`` copies of the model, each cut over ``shard`` times ``tensor``, as training has them."""

    gpus: int
    replicate: int
    shard: int
    experts: int
    tensor: int = 1

    @property
    def each(self) -> int:
        """Ranks of one copy."""
        return self.shard * self.tensor

    @property
    def readers(self) -> int:
        """Ranks, or groups of ranks that share layers, with rows of their own."""
        return self.gpus // self.tensor


def layout(gpus: int, replicate: int, shard: int | None, experts: int, tensor: int = 1) -> Layout:
    """The grids of :mod:`mm1.train.parallel`, or why there are none.

    Raises:
        UserError: Sizes that do not fit ``gpus``.
    """
    at_least(1, {"--gpus": gpus, "--replicate": replicate, "--experts": experts, "--tensor": tensor})
    if shard is not None:
        at_least(1, {"--shard": shard})
    ways = gpus // (replicate * tensor) if shard is None else shard
    if replicate * ways * tensor != gpus:
        cut = f" x {tensor} that share layers" if tensor > 1 else ""
        raise UserError(
            f"{gpus} GPUs are not {replicate} copies x {ways} ranks{cut}; expected them to be (--gpus, --shard)"
        )
    if ways * tensor % experts:
        raise UserError(
            f"{experts} ranks of experts among {ways * tensor} that share a copy; expected a divisor (--experts)"
        )
    return Layout(gpus, replicate, ways, experts, tensor)


@dataclass(frozen=True)
class Job:
    """One training run.

    Args:
        name: For the reader.
        model: On the meta device, frozen as the optimizer's rules say.
        precision: Lightning's word for it.
        compiled: Whether layers are compiled.
        row_tokens: Positions of a row.
        images: Pictures of a row, at most.
        rows_per_step: Rows of an optimizer step, over all ranks.
        micro_batches: Of a step, on each rank.
        steps: Of the run.
        lowered: Whether weights are bfloat16 with masters in the optimizer (``model.weights``).
        moment_bytes: Of a number of each moment.
        masters: Whether bfloat16 weights have fp32 masters.
        factored: Whether the optimizer is Adafactor, which keeps means of rows and columns: next to nothing.
        eight_bit: Whether it is AdamW8bit, whose moments are bytes with a scale for each stretch of a row.
    """

    name: str
    model: MM1
    precision: str
    compiled: bool
    row_tokens: int
    images: int
    rows_per_step: int
    micro_batches: int
    steps: int
    lowered: bool = False
    moment_bytes: int = 4
    masters: bool = True
    factored: bool = False
    eight_bit: bool = False

    @property
    def weight_bytes(self) -> int:
        """Of a number of the weights."""
        return 2 if self.lowered else BYTES[self.precision]

    @property
    def gradient_bytes(self) -> int:
        """Of a number of their gradients; several micro-batches are added up in fp32."""
        return self.weight_bytes if self.micro_batches == 1 else 4

    @property
    def state_bytes(self) -> int:
        """What the optimizer keeps for a number: two moments, and the master of a weight below fp32."""
        if self.factored:
            return 0
        return 2 * self.moment_bytes + (4 if self.masters and self.weight_bytes < 4 else 0)

    def kept_bytes(self, parameter: Tensor, cuts: int) -> float:
        """The same for a number of a parameter, whose rows ``cuts`` ranks share; as ``mm1.train.adamw8bit.block``."""
        row = parameter.shape[-1] if parameter.ndim > 1 and parameter.numel() >= 4096 else 1
        block = next((size for size in range(256, 63, -1) if row % size == 0), None)
        if not self.eight_bit or block is None or row % (block * cuts):
            return self.state_bytes
        return 2 * (1 + 4 / block)

    @property
    def mixed(self) -> bool:
        """Whether matrix products run in bf16 over weights in fp32."""
        return self.precision == "bf16-mixed"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.weight_bytes == 2 else torch.float32

    def gathered(self, on: Layout) -> torch.dtype:
        """What ranks compute with, and gather: under mixed precision several gather in bf16, one casts as it goes."""
        return torch.bfloat16 if self.mixed and on.gpus > 1 else self.dtype

    def rows(self, on: Layout) -> int:
        """Rows of a micro-batch.

        Raises:
            UserError: The rows of a step cannot be shared evenly, or the decoder cannot be cut so.
        """
        cut = {name: getattr(self.model.decoder, name) for name in ("heads", "kv_heads", "ffn_width", "vocabulary")}
        for name, number in (cut | {"row_tokens": self.row_tokens}).items():
            if number % on.tensor:
                raise UserError(f"{name} is {number}, to be cut by {on.tensor} ranks; expected a multiple (--tensor)")
        parts = on.readers * self.micro_batches
        if self.rows_per_step % parts:
            who = f"{on.gpus} GPUs" + (f", {on.tensor} to a row," if on.tensor > 1 else "")
            raise UserError(
                f"{self.rows_per_step} rows a step on {who} with {self.micro_batches} micro-batches; expected a "
                f"multiple of {parts} (--rows, or data.rows_per_step and trainer.accumulate_grad_batches)"
            )
        return self.rows_per_step // parts


def job(config: str | Path, rows: int | None = None, micro_batches: int | None = None) -> Job:
    """Read a training YAML, a run's resolved ``config.yaml``, or the short name of one such as ``30b``.

    Raises:
        UserError: It is not there, or no training configuration.
    """
    path = _path(config)
    tree = read(path)
    model, data = _part(tree, "model", path), _part(tree, "data", path)
    trainer = tree.get("trainer") or {}
    built, optimizer = build(_nested(model.get("model"), path)), model.get("optimizer") or {}
    settings = optimizer.get("init_args") or optimizer
    kind = str(optimizer.get("class_path")).rpartition(".")[2]
    _freeze(built, settings.get("parts") or {})
    precision = str(trainer.get("precision") or "32-true")
    if precision not in BYTES:
        raise UserError(f"{path}: trainer.precision is {precision}; a plan knows {', '.join(BYTES)}")
    numbers: dict[str, Any] = {
        "row_tokens": data.get("row_tokens"),
        "rows_per_step": data.get("rows_per_step") if rows is None else rows,
        "micro_batches": trainer.get("accumulate_grad_batches") or 1 if micro_batches is None else micro_batches,
        "steps": trainer.get("max_steps"),
    }
    at_least(1, {f"{path}: {name}": value for name, value in numbers.items()})
    numbers |= {
        "lowered": model.get("weights") == "bfloat16",
        "moment_bytes": 2 if settings.get("states") == "bfloat16" else 4,
        "masters": settings.get("masters", True),
        "factored": kind == "Adafactor",
        "eight_bit": kind == "AdamW8bit",
    }
    name, compiled = path.parent.name if path.name == "config.yaml" else path.stem, bool(model.get("compiled"))
    return Job(name, built, precision, compiled, images=int(data.get("images_per_row") or 0), **numbers)


def _path(config: str | Path) -> Path:
    path = Path(config)
    if path.is_dir():
        path = path / "config.yaml"
    short = Path("configs/train") / f"pretrain_{config}.yaml"
    if path.is_file() or not short.is_file():
        if not path.is_file():
            raise UserError(f"{path} does not exist; expected a training YAML such as configs/train/pretrain_30b.yaml")
        return path
    return short


def _part(tree: Any, key: str, path: Path) -> dict[str, Any]:
    found = _nested(tree.get(key), path) if isinstance(tree, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{path} has no {key}; expected a training YAML such as configs/train/pretrain_30b.yaml")
    return found


def _nested(value: Any, path: Path) -> Any:
    """A part may stand in a file of its own, named relative to the YAML."""
    return read(path.parent / value) if isinstance(value, str) else value


def _freeze(model: MM1, parts: dict[str, Any]) -> None:
    """As :meth:`mm1.train.optim.Scheduled.freeze` does: of several rules the last one holds."""
    for name, parameter in model.named_parameters():
        rules = [rule for pattern, rule in parts.items() if pattern == name.split(".", 1)[0] or fnmatch(name, pattern)]
        if rules and (rules[-1] or {}).get("frozen"):
            parameter.requires_grad_(False)
