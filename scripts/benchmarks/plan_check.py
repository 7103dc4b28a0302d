"""What ``mm1-study plan`` says of configurations that it was not calibrated with, beside what training takes.

The step is :class:`mm1.train.module.Objective`'s, run by Lightning's Trainer as ``mm1-train`` does, on rows that stand
in memory: documents as long as a row, all text learned, as many pictures as a row may have, which a plan assumes.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Literal

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from benchmarks.contestants.assembled import Size
from benchmarks.machine import RESULTS, append, machine, versions
from benchmarks.train import VOCABULARY, our_batch
from mm1.batch import Batch
from mm1.errors import UserError, at_least
from mm1.model.build import build
from mm1.model.recompute import Checkpointing
from mm1.study.plan import MEMORY_BAR, TIME_BAR, make
from mm1.study.plan_cards import CARDS, GIB
from mm1.study.plan_job import Job, layout
from mm1.train.module import Objective
from mm1.train.optim import AdamW
from mm1.train.strategy import Sharded

WARM_UP = 3


@dataclass(frozen=True)
class Configuration:
    """A model and the rows of each GPU.

    Args:
        width: Of the decoder; heads are 16 of 128 in all, so that attention is compiled once.
        layers: Of the decoder.
        ffn_width: Of its feed-forward layers, dense or expert.
        rows: Of each GPU.
        experts: In every second layer, two of them visited; none at 0.
        checkpointing: What decoder and encoder recompute.
    """

    width: int
    layers: int
    ffn_width: int
    rows: int
    experts: int = 0
    checkpointing: Checkpointing = False


# None was in view when a rate or the margin was chosen: those had 24 layers of 2048 and 2560, and no encoder.
CONFIGURATIONS = {
    "dense": Configuration(2304, 22, 6144, 2),
    "dense-selective": Configuration(2304, 22, 6144, 3, checkpointing="selective"),
    "dense-recomputed": Configuration(2816, 24, 7680, 4, checkpointing=True),
    "sparse": Configuration(1792, 20, 4864, 2, experts=8),
    "sparse-recomputed": Configuration(1536, 24, 4096, 4, experts=16, checkpointing=True),
}


def plan_check(
    *,
    configurations: tuple[str, ...] = tuple(CONFIGURATIONS),
    size: Literal["full", "tiny"] = "full",
    gpu: str = "h200",
    compiled: bool = False,
    weights: Literal["float32", "bfloat16"] = "float32",
    experts: int = 1,
    tensor: int = 1,
    repeats: int = 5,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time a step and read the peak of memory of each configuration; print both beside the plan's.

        python scripts/benchmark.py plan_check
        torchrun --nproc_per_node 2 scripts/benchmark.py plan_check --configurations "[dense,sparse-recomputed]"

    Args:
        configurations: Some of dense, dense-selective, dense-recomputed, sparse, sparse-recomputed: 1.9 to 3.5 billion
            parameters with a ViT-H/14 at 378 px.
        size: ``tiny`` runs small ones on a CPU to see that everything does; their figures say nothing.
        gpu: The card as ``mm1-study plan --gpu`` knows it.
        compiled: Compile layers; half a minute more for each.
        weights: As ``model.weights`` has it: under autocast, or with masters in the optimizer.
        experts: As ``trainer.strategy`` has it, on several GPUs.
        tensor: Likewise.
        repeats: Timed steps; the median counts.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    at_least(1, {"repeats": repeats})
    if wrong := [name for name in configurations if name not in CONFIGURATIONS]:
        raise UserError(f"no configuration {wrong[0]}; expected some of {', '.join(CONFIGURATIONS)} (--configurations)")
    if gpu not in CARDS:
        raise UserError(f"no card {gpu!r}; expected one of {', '.join(CARDS)} (--gpu)")
    if size == "full" and not torch.cuda.is_available():
        raise UserError("no CUDA device; expected a GPU (--size tiny runs on a CPU)")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    gpus, first = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0
    lines = []
    for name in configurations:
        shape = CONFIGURATIONS[name]
        axes = {"experts": experts if shape.experts else 1, "tensor": tensor}
        began = time.monotonic()
        planned = _job(name, shape, size, gpus // tensor, compiled, weights)
        made = make(planned, layout(gpus, 1, None, **axes), CARDS[gpu], 1.0)
        thought_s = time.monotonic() - began
        run = _job(name, shape, size, gpus // tensor, compiled, weights)
        ms, peak = _measured(run, axes if gpus > 1 else None, repeats)
        lines.append(_line(name, planned, axes, made, ms, peak))
        if first:
            _tell(lines[-1], thought_s, time.monotonic() - began - thought_s)
    if first:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        about = {**machine(), "card": card, **versions("torch", "triton")}
        print(append(results / "plan.csv", [{**about, **line, "note": note} for line in lines]))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _job(name: str, shape: Configuration, size: str, readers: int, compiled: bool, weights: str) -> Job:
    vision: dict[str, Any] = {"name": "ViT-H-14-378-quickgelu", "checkpointing": shape.checkpointing}
    heads, row_tokens, images, tokens = 16, 4096, 16, 144
    if size == "tiny":
        shape = replace(shape, width=64, layers=2, ffn_width=128, experts=4 if shape.experts else 0)
        vision |= {"image_px": 56, "width": 64, "layers": 2, "heads": 2, "ffn_width": 256}
        heads, row_tokens, images, tokens = 2, 256, 2, 16
    decoder: dict[str, Any] = {"vocabulary": VOCABULARY, "width": shape.width, "layers": shape.layers, "heads": heads}
    decoder |= {"ffn_width": shape.ffn_width, "checkpointing": shape.checkpointing}
    decoder |= {} if size == "tiny" else {"head_width": 128}
    if shape.experts:
        moe = {"experts": shape.experts, "top_k": 2}
        decoder["moe"] = {"class_path": "mm1.model.moe.layer.MoE", "init_args": moe}
    parts = {
        "vision": {"class_path": "mm1.model.vision.OpenClip", "init_args": vision},
        "connector": {"class_path": "mm1.model.connector.CAbstractor", "init_args": {"tokens": tokens}},
        "decoder": {"class_path": "mm1.model.decoder.Decoder", "init_args": decoder},
    }
    model = build({"class_path": "mm1.model.mm1.MM1", "init_args": parts})
    rows = shape.rows * readers
    lowered = weights == "bfloat16"
    precision = "32-true" if lowered else "bf16-mixed"
    return Job(name, model, precision, compiled, row_tokens, images, rows, 1, steps=1, lowered=lowered)


class _Rows(lightning.LightningDataModule):
    """One batch again and again, with what an objective asks of its data."""

    def __init__(self, batch: Batch, vocabulary: int) -> None:
        super().__init__()
        self.batch = batch
        self.template = None
        self.tokenizer = SimpleNamespace(vocabulary=vocabulary)
        self.recipe = SimpleNamespace(names=batch.sources, corpus=Path("generated"), rows_per_step=len(batch.tokens_BT))

    def train_dataloader(self) -> Any:
        """Endlessly."""
        return _Endless(self.batch)

    def trained(self, batch: Batch) -> None:
        """Nothing to take note of."""


class _Endless:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


class _Left(Objective):
    """What Lightning would bring to the host when it is done stays where it is, to be freed."""

    def cpu(self) -> _Left:
        """Nothing moves."""
        return self


class _Clock(Callback):
    """Seconds from the end of a step to the end of the next, on a device that has caught up."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.last_s: float | None = None

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let go of the optimizer, which Lightning would bring to the host."""
        trainer.strategy.optimizers = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the device, and note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now_s = time.perf_counter()
        if self.last_s is not None:
            self.times_s.append(now_s - self.last_s)
        self.last_s = now_s


def _measured(of: Job, axes: dict[str, int] | None, repeats: int) -> tuple[float, float]:
    """Median milliseconds of a step, and the peak in bytes, on the rank that has most of each."""
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(int(os.environ.get("LOCAL_RANK", 0)))
    shared = 1 if axes is None else axes["tensor"]
    rows = of.rows_per_step * shared // int(os.environ.get("WORLD_SIZE", 1))
    grid = of.model.connector.tokens**0.5
    size = Size(
        0, 0, 0, 0, image_px=of.model.vision.image_px, row_tokens=of.row_tokens, images=of.images, side=int(grid)
    )
    torch.manual_seed(0)
    batch = our_batch(size, torch.device("cpu"), rows, documents=False)
    batch = replace(batch, window_targets=batch.targets, window_tokens=batch.tokens)
    batch = batch.pin_memory() if cuda else batch
    clock, ranks = _Clock(), int(os.environ.get("WORLD_SIZE", 1))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            num_nodes=ranks // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            strategy="auto" if axes is None else Sharded(axes["experts"], tensor=axes["tensor"]),
            precision=of.precision,  # type: ignore[arg-type]
            max_steps=WARM_UP + repeats,
            max_epochs=-1,
            gradient_clip_val=1.0,
            callbacks=[clock],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        lowered: dict[str, Any] = {"weights": "bfloat16"} if of.lowered else {}
        objective = _Left(of.model, AdamW(lr=1e-5), compiled=of.compiled, **lowered)
        trainer.fit(objective, datamodule=_Rows(batch, of.model.decoder.vocabulary))
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    worst = torch.tensor([1e3 * median(clock.times_s[WARM_UP - 1 :]), float(peak)], dtype=torch.float64)
    if dist.is_initialized():
        worst = worst.to(trainer.strategy.root_device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    ms, peak = worst.tolist()
    return ms, peak


def _line(name: str, of: Job, axes: dict[str, int], made: Any, ms: float, peak: float) -> dict[str, Any]:
    planned_gib, planned_ms, gib = made.peak_gib, 1e3 * made.time.step_s, peak / GIB
    numbers = sum(parameter.numel() for parameter in of.model.parameters())
    weights = "bfloat16" if of.lowered else "float32"
    about = {"configuration": name, "parameters": numbers, "rows": made.rows, "compiled": of.compiled}
    about |= {"weights": weights}
    line = {**about, "gpus": made.on.gpus, **axes, "peak_gib": round(gib, 2), "planned_gib": round(planned_gib, 2)}
    line |= {"memory_off": round(planned_gib / gib - 1, 3) if gib else "", "ms": round(ms, 1)}
    return line | {"planned_ms": round(planned_ms, 1), "time_off": round(planned_ms / ms - 1, 3)}


def _tell(line: dict[str, Any], thought_s: float, ran_s: float) -> None:
    def verdict(off: Any, bar: float) -> str:
        how = "within" if off != "" and abs(off) <= bar else "BEYOND"
        return "not measured" if off == "" else f"{100 * off:+.1f} %, {how} {bar:.0%}"

    print(
        f"{line['configuration']}: {line['parameters'] / 1e9:.2f} B, {line['rows']} rows on each of {line['gpus']}\n"
        f"    memory {line['peak_gib']:.2f} GiB, planned {line['planned_gib']:.2f}, "
        f"{verdict(line['memory_off'], MEMORY_BAR)}\n"
        f"    step {line['ms']:.0f} ms, planned {line['planned_ms']:.0f}, {verdict(line['time_off'], TIME_BAR)}\n"
        f"    planning took {thought_s:.0f} s, the run {ran_s:.0f} s",
        flush=True,
    )
