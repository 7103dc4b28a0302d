"""A sparse layer on one GPU, forward and backward with all of routing, beside a dense one and its peers."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, append, where
from mm1.errors import UserError
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import TopK
from mm1.model.moe.routing import Places, Routing

SLOW_MS = 5000.0  # from which on fewer steps are enough
SKEW = 4.0  # load of the busiest expert over the mean, in the skewed run


@dataclass(frozen=True)
class Shape:
    """A layer: experts, choices, width, inner width of an expert, tokens; and the bar, as a share of the dense one."""

    experts: int
    top_k: int
    width: int
    ffn_width: int
    tokens: int
    bar: float

    def __str__(self) -> str:
        return f"E{self.experts} k{self.top_k} d{self.width} f{self.ffn_width}, {self.tokens:,} tokens"

    @property
    def rows(self) -> int:
        """Copies of tokens."""
        return self.tokens * self.top_k

    @property
    def flops(self) -> float:
        """Of the experts, forward and backward."""
        return 18.0 * self.rows * self.width * self.ffn_width


SHAPES = (
    Shape(64, 2, 2560, 6912, 16384, 0.72),
    Shape(64, 2, 2560, 6912, 8192, 0.60),
    Shape(8, 2, 2048, 5504, 16384, 0.75),
    Shape(64, 8, 2048, 1024, 16384, 0.53),
    Shape(128, 8, 2048, 768, 32768, 0.55),
)
SMALL = (Shape(8, 2, 64, 96, 256, 0.0),)


class Skewed(TopK):
    """TopK with a constant in favour of one expert."""

    favour, skew = 0.0, SKEW

    def logits(self, x_BTD: Tensor) -> Tensor:
        """fp32[B, T, E]."""
        logits_BTE = super().logits(x_BTD)
        return torch.cat([logits_BTE[..., :1] + self.favour, logits_BTE[..., 1:]], dim=-1)

    @torch.no_grad()
    def settle(self, x_BTD: Tensor, places: Places) -> None:
        """Find the constant with which the first expert has ``skew`` times the mean load."""
        low, high = 0.0, 20.0
        for _ in range(30):
            self.favour = (low + high) / 2
            routing: Routing = self(x_BTD, places)
            load_E = routing.choice.rows(self.experts).counts_E.float()
            low, high = (self.favour, high) if load_E[0] < self.skew * load_E.mean() else (low, self.favour)


Step = Callable[[], None]


def moe(
    *,
    repeats: int = 20,
    skewed: bool = True,
    eager: bool = True,
    liger: bool = True,
    shapes: tuple[int, ...] | None = None,
    small: bool = False,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time a sparse layer beside a dense one over the same rows, transformers' Mixtral block and Liger's fused MoE.

    Args:
        repeats: Timed steps of each; the median counts.
        skewed: The first shape again with the busiest expert at four times the mean.
        eager: Transformers' loop over experts as well, which takes longest.
        liger: Liger's fused MoE as well, which tunes itself for a minute a shape.
        shapes: Which shapes, counted from 0; all of them if not given.
        small: A tiny shape, on a CPU too, to see that everything runs.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", "triton", "transformers", "liger_kernel", small=small, flag="--small true")
    rows = []
    chosen = range(len(SHAPES)) if shapes is None else shapes
    if not all(0 <= index < len(SHAPES) for index in chosen):
        raise UserError(f"shapes is {list(chosen)}; expected numbers from 0 to {len(SHAPES) - 1}")
    for shape in SMALL if small else [SHAPES[index] for index in chosen]:
        dense = None
        print(f"\n{shape}; bar {shape.bar} of dense")
        for name, build in contestants(shape, device, skewed and shape is SHAPES[0], eager, liger):
            found = measured(build, device, repeats)
            if isinstance(found, str):
                print(f"  {name:34} {found}")
                continue
            ms, peak = found
            dense = ms if dense is None else dense
            print(
                f"  {name:34} {ms:8.2f} ms {shape.flops / ms / 1e9:6.0f} TFLOP/s {dense / ms:5.2f} of dense "
                f"{peak / 2**30:6.1f} GiB",
                flush=True,
            )
            row = {"shape": str(shape), "contestant": name, "ms": round(ms, 3), "of_dense": round(dense / ms, 3)}
            row |= {"tflops": round(shape.flops / ms / 1e9), "peak_gib": round(peak / 2**30, 2), "note": note}
            rows.append({**about, **row})
    print(append(results / "moe.csv", rows))


def contestants(
    shape: Shape, device: torch.device, skewed: bool, eager: bool, liger: bool
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Name and what builds one; a builder that cannot says why by raising."""
    yield "dense SwiGLU over the same rows", partial(_dense, shape, device)
    yield "ours", partial(_ours, shape, device)
    yield "ours, compiled", partial(_ours, shape, device, compiled=True)
    if skewed:
        yield "ours, skewed", partial(_ours, shape, device, skewed=True)
        yield "ours, skewed, compiled", partial(_ours, shape, device, skewed=True, compiled=True)
    for kind in ("grouped_mm", "eager") if eager else ("grouped_mm",):
        yield f"transformers Mixtral, {kind}", partial(_mixtral, shape, device, kind)
    if liger:
        yield "liger fused MoE", partial(_liger, shape, device)


def measured(build: Callable[[], Step], device: torch.device, repeats: int) -> tuple[float, float] | str:
    """Median milliseconds and peak bytes of a step, or why there are none."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = build()
        slow = max(_timed(step, device) for _ in range(2)) > SLOW_MS
        for _ in range(0 if slow else 3):
            step()
        times = [_timed(step, device) for _ in range(3 if slow else repeats)]
    except Exception as error:
        return f"did not run: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return median(times), float(peak)


def _timed(step: Step, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _step(layer: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    grad = torch.randn_like(x)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        run(x).backward(grad)

    return step


def _filled(layer: nn.Module, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    layer = layer.to_empty(device=device).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.02)
    return layer


def _tokens(*sizes: int, device: torch.device) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*sizes, device=device, dtype=torch.bfloat16, requires_grad=True)


def _dense(shape: Shape, device: torch.device) -> Step:
    with torch.device("meta"):
        layer = SwiGLU(shape.width, shape.ffn_width)
    layer = _filled(layer, device)
    return _step(layer, layer, _tokens(1, shape.rows, shape.width, device=device))


def _ours(shape: Shape, device: torch.device, compiled: bool = False, skewed: bool = False) -> Step:
    with torch.device("meta"):
        kind = Skewed if skewed else TopK
        layer = MoE(shape.width, shape.ffn_width, experts=shape.experts, top_k=shape.top_k, router=kind)
    _filled(layer, device)
    layer.router.float()
    x = _tokens(4, shape.tokens // 4, shape.width, device=device)
    places = Places.of_text(torch.ones(x.shape[:2], dtype=torch.bool, device=device))
    if isinstance(layer.router, Skewed):
        layer.router.settle(x, places)
    grad, weight = torch.randn_like(x), torch.tensor(1.0 / shape.tokens, device=device)
    if compiled:
        layer.compile(fullgraph=True)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y, stats = layer(x, places)
        torch.autograd.backward([y, stats.loss], [grad, weight])

    return step


def _mixtral(shape: Shape, device: torch.device, kind: str) -> Step:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = MixtralConfig(
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
    )
    config._experts_implementation = kind
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block = _filled(block, device)

    def run(x: Tensor) -> Tensor:
        found: Any = block(x)
        return found[0] if isinstance(found, tuple) else found

    return _step(block, run, _tokens(1, shape.tokens, shape.width, device=device))


def _liger(shape: Shape, device: torch.device) -> Step:
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    class Block(nn.Module):
        """A linear router as Mixtral's and Liger's experts."""

        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(shape.width, shape.experts, bias=False)
            self.gate_up = nn.Parameter(torch.empty(shape.experts, 2 * shape.ffn_width, shape.width))
            self.down = nn.Parameter(torch.empty(shape.experts, shape.width, shape.ffn_width))

        def forward(self, x: Tensor) -> Tensor:
            shares = self.router(x).float().softmax(-1).topk(shape.top_k)
            weights = (shares.values / shares.values.sum(-1, keepdim=True)).to(x.dtype)
            return LigerFusedMoEFunction.apply(x, self.gate_up, self.down, shares.indices, weights)

    with torch.device("meta"):
        block = Block()
    block = _filled(block, device)
    return _step(block, block, _tokens(shape.tokens, shape.width, device=device))
