"""Two sparse layers on one GPU that holds all experts, and on several that share them, with as many tokens each."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.machine import RESULTS, append, machine, versions
from benchmarks.moe import Skewed
from mm1.errors import UserError, at_least
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import TopK
from mm1.model.moe.routing import Places, Routing
from mm1.train.parallel import Meshes, Way, meshes, spread, whole

LAYERS, WARM_UP = 2, 5


@dataclass(frozen=True)
class Shape:
    """Of each layer, and how many tokens each GPU brings."""

    experts: int
    top_k: int
    width: int
    ffn_width: int
    tokens: int
    skew: float

    def __str__(self) -> str:
        skewed = f", busiest expert {self.skew:g} times the mean" if self.skew else ""
        return f"E{self.experts} k{self.top_k} d{self.width} f{self.ffn_width}, {self.tokens:,} tokens a GPU{skewed}"


def experts(
    *,
    count: int = 64,
    top_k: int = 2,
    width: int = 2560,
    ffn_width: int = 6912,
    tokens: int = 16384,
    dispatch: Way = "plain",
    skew: float = 0.0,
    repeats: int = 20,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time forward and backward of two sparse layers: experts on one GPU, and shared by all that torchrun started.

        torchrun --nproc_per_node 2 scripts/benchmark.py experts
        torchrun --nproc_per_node 2 scripts/benchmark.py experts --dispatch shadowed --skew 4

    Args:
        count: Experts of a layer.
        top_k: Experts that a token visits.
        width: Width of the layers.
        ffn_width: Inner width of an expert.
        tokens: Tokens of each GPU.
        dispatch: How shared experts meet their tokens.
        skew: Load of the busiest expert over the mean; as it comes at 0.
        repeats: Timed steps; the median counts.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    at_least(1, {"experts": count, "tokens": tokens, "repeats": repeats})
    if "RANK" not in os.environ:
        raise UserError("no ranks to share experts; expected torchrun --nproc_per_node 2 scripts/benchmark.py experts")
    device = join()
    try:
        shape = Shape(count, top_k, width, ffn_width, tokens, skew)
        rows = _compare(shape, device, dispatch, repeats, note)
        if dist.get_rank() == 0:
            print(append(results / "experts.csv", rows))
        gc.collect()  # exchanges that autograd still holds must end before the group does,
        dist.barrier()  # and no rank may leave while another is in the group
    finally:
        dist.destroy_process_group()


def _compare(shape: Shape, device: torch.device, way: Way, repeats: int, note: str) -> list[dict[str, Any]]:
    ranks, first = dist.get_world_size(), dist.get_rank() == 0
    on = meshes(device.type, ranks, experts=ranks)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {**machine(), "card": card, **versions("torch", "triton")}
    rows: list[dict[str, Any]] = []
    for sharing in (1, ranks):
        ms, peak = 0.0, 0.0
        if first or sharing > 1:  # the others wait while the first has the experts to itself
            ms, peak = _measured(lambda n=sharing: _step(shape, device, on if n > 1 else None, way), device, repeats)
        slowest = torch.tensor([ms, peak], device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        ms, peak = slowest.tolist()
        speed = shape.tokens * sharing / ms * 1e3
        ratio = speed / (rows[0]["tokens_s"] if rows else speed)
        how = f", {way}" if sharing > 1 and way != "plain" else ""
        row = {
            "shape": f"{shape}{how}",
            "layers": LAYERS,
            "gpus": sharing,
            "ms": round(ms, 3),
            "tokens_s": round(speed),
        }
        rows.append({**about, **row, "ratio": round(ratio, 3), "peak_gib": round(peak / 2**30, 2), "note": note})
        if first:
            print(
                f"{shape}, experts shared by {sharing}{how}: {ms:.2f} ms, {speed:,.0f} tokens/s, "
                f"{ratio:.2f} times one, {peak / 2**30:.1f} GiB",
                flush=True,
            )
    return rows


def join() -> torch.device:
    """Meet the other ranks that torchrun started; this rank's device."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


class _Skewed(Skewed):
    """Finds its constant when it is first called, for only then are its weights whole."""

    def __init__(self, width: int, experts: int, top_k: int, *, skew: float) -> None:
        super().__init__(width, experts, top_k)
        self.skew, self.settled = skew, False

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position."""
        if not self.settled:
            self.settled = True
            self.settle(x_BTD, places)
        return super().forward(x_BTD, places)


class _Layer(nn.Module):
    """A sparse layer and its residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        router = partial(_Skewed, skew=shape.skew) if shape.skew else TopK
        self.moe = MoE(shape.width, shape.ffn_width, experts=shape.experts, top_k=shape.top_k, router=router)

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Hidden states, and what the router is trained on."""
        y_BTD, stats = self.moe(x_BTD, places)
        return x_BTD + y_BTD, stats.loss


class _Layers(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(LAYERS))

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """All of them; the losses added up."""
        total = x_BTD.new_zeros((), dtype=torch.float32)
        for layer in self.layers:
            x_BTD, loss = layer(x_BTD, places)
            total = total + loss
        return x_BTD, total


def _step(shape: Shape, device: torch.device, on: Meshes | None, way: Way) -> Callable[[], None]:
    with torch.device("meta"):
        model = _Layers(shape).to(torch.bfloat16)
    for layer in model.layers:
        layer.moe.router.float()
    if on is not None:
        spread(model, [*model.layers, model], on, way)
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            with whole(parameter) as filled:
                filled.normal_(std=0.02)
    torch.manual_seed(dist.get_rank())
    rows = 4 if shape.tokens % 4 == 0 else 1
    x_BTD = torch.randn(rows, shape.tokens // rows, shape.width, device=device, dtype=torch.bfloat16)
    x_BTD.requires_grad_()
    places = Places.of_text(torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=device))
    grad_BTD, weight = torch.randn_like(x_BTD), torch.tensor(1.0 / shape.tokens, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        x_BTD.grad = None
        y_BTD, loss = model(x_BTD, places)
        torch.autograd.backward([y_BTD, loss], [grad_BTD, weight])

    return step


def _measured(build: Callable[[], Callable[[], None]], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median milliseconds of a step, and the peak of memory in bytes."""
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, times = build(), []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times[WARM_UP:]), float(torch.cuda.max_memory_allocated() if cuda else 0)
