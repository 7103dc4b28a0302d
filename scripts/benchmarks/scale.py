"""The same training step on one GPU and on all that torchrun started, with as many rows for each."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.experts_parallel import join
from benchmarks.machine import RESULTS, append, machine, versions
from benchmarks.train import SIZES, our_batch, our_model, step_flops
from mm1.errors import UserError, at_least
from mm1.model.mm1 import MM1
from mm1.train.parallel import Meshes, clip_gradients, meshes, shard, whole

WARM_UP = 5
BAR = 0.95  # of each GPU: 1.9 times one on two


@dataclass(frozen=True)
class Work:
    """What every step is."""

    size: Literal["1.2b", "3b", "tiny"]
    rows: int
    checkpointing: bool
    compiled: bool


def scale(
    *,
    size: Literal["1.2b", "3b", "tiny"] = "1.2b",
    rows: int = 2,
    tensor: int = 1,
    replicate: int = 1,
    checkpointing: bool = False,
    compiled: bool = True,
    repeats: int = 10,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time forward, backward, clipping and AdamW of all towers: on rank 0 while the others wait, then on all ranks.

        torchrun --nproc_per_node 2 scripts/benchmark.py scale
        torchrun --nproc_per_node 2 scripts/benchmark.py scale --tensor 2
        torchrun --nproc_per_node 2 scripts/benchmark.py scale --size tiny    # on a CPU, to see that everything does

    One GPU keeps fp32 weights under autocast; several share them (``mm1.train.strategy.Sharded`` under bf16-mixed):
    gathered in bf16, gradients added up in fp32, the same optimizer.

    Args:
        size: As of ``benchmark.py train``.
        rows: Rows of each GPU; ranks that share layers read theirs together.
        tensor: Ranks that share every layer of the decoder.
        replicate: Copies of the model.
        checkpointing: Recompute layers of decoder and encoder in the backward pass.
        compiled: Compile layers, as ``model.compiled`` does.
        repeats: Timed steps; the median counts.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    at_least(1, {"rows": rows, "repeats": repeats})
    if "RANK" not in os.environ:
        raise UserError("no ranks to share the work; expected torchrun --nproc_per_node 2 scripts/benchmark.py scale")
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    device = join()
    try:
        if size != "tiny" and device.type == "cpu":
            raise UserError("no CUDA device; expected GPUs (--size tiny runs on a CPU)")
        on = meshes(device.type, dist.get_world_size(), tensor=tensor, replicate=replicate)
        lines = _compare(Work(size, rows, checkpointing, compiled), device, on, repeats, note)
        if dist.get_rank() == 0:
            print(append(results / "scale.csv", lines))
        gc.collect()
        dist.barrier()  # no rank may leave while another is in the group
    finally:
        dist.destroy_process_group()


def _compare(work: Work, device: torch.device, on: Meshes, repeats: int, note: str) -> list[dict[str, Any]]:
    ranks, first = dist.get_world_size(), dist.get_rank() == 0
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {**machine(), "card": card, **versions("torch", "triton")}
    size, lines = SIZES[work.size], list[dict[str, Any]]()
    for gpus in (1, ranks):
        ms, peak, loss = 0.0, 0.0, 0.0
        if first or gpus > 1:  # the others wait while the first has the machine to itself
            ms, peak, loss = _measured(work, device, on if gpus > 1 else None, repeats)
        slowest = torch.tensor([ms, peak], device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        ms, peak = slowest.tolist()
        speed = work.rows * size.row_tokens * gpus / ms * 1e3
        ratio = speed / (lines[0]["positions_s"] if lines else speed)
        tflops = step_flops(size, work.rows) / ms / 1e9
        line = {**vars(work), "gpus": gpus, "replicate": 1, "tensor": 1}
        if gpus > 1:
            line |= {"replicate": on.dense["replicate"].size(), "tensor": on.tensor}
        line |= {"ms": round(ms, 2), "tflops": round(tflops, 3), "positions_s": round(speed), "ratio": round(ratio, 3)}
        line |= {"efficiency": round(ratio / gpus, 3), "peak_gib": round(peak / 2**30, 2), "loss": round(loss, 4)}
        lines.append({**about, **line, "note": note})
        if first:
            print(
                f"{gpus} x {card}, {work.rows} rows each, tensor {line['tensor']}: {ms:.1f} ms, "
                f"{speed:,.0f} positions/s, {tflops:.0f} TFLOP/s a GPU, {peak / 2**30:.1f} GiB, {ratio:.2f} times one",
                flush=True,
            )
    if first:
        found = lines[1]["efficiency"]
        verdict = "reaches" if found >= BAR else "MISSES"
        print(f"efficiency {found:.3f}, {verdict} the bar of {BAR} ({BAR * ranks:.2f} times one)", flush=True)
    return lines


def _measured(work: Work, device: torch.device, on: Meshes | None, repeats: int) -> tuple[float, float, float]:
    """Median milliseconds, peak bytes, and the loss of the first step; as many steps on every rank."""
    gc.collect()
    torch._dynamo.reset()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, times = _step(work, device, on), []
    loss = float(step())
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times[WARM_UP:]), float(torch.cuda.max_memory_allocated() if cuda else 0), loss


def _step(work: Work, device: torch.device, on: Meshes | None) -> Callable[[], torch.Tensor]:
    """A step as training does it; every reader has the same rows, so that the loss is that of one GPU."""
    size, shared = SIZES[work.size], on.tensor if on else 1
    readers = dist.get_world_size() // shared if on else 1

    def spread(model: MM1) -> None:
        if on is not None:
            shard(model, on, low=torch.bfloat16)

    model = our_model(size, device, work.checkpointing, spread, nullcontext if on is None else whole)
    if work.compiled:
        model.compile_parts()
    torch.manual_seed(0)
    batch = our_batch(size, device, work.rows * shared, True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            sums = model.losses(batch)
        loss = sums.cross_entropy / sums.targets
        (loss / readers).backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step
