"""A whole training step on one GPU, all towers trained, beside a model assembled of transformers' parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from benchmarks.contestants.assembled import Assembled, Size
from benchmarks.machine import RESULTS, append, where
from benchmarks.moe import Step, measured
from mm1.batch import IMAGE, Batch, targets_of
from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.init import Whole
from mm1.model.mm1 import MM1
from mm1.model.recompute import Checkpointing
from mm1.peak import peak_tflops
from mm1.train.adamw8bit import InBlocks
from mm1.train.clock import PARTS, Clock
from mm1.train.float8 import Recipe, convert
from mm1.train.masters import MasterAdamW, States, lower
from mm1.train.parallel import clip_gradients, gradient_norm

SIZES = {
    "1.2b": Size(2048, 24, 16, 5504),
    "3b": Size(2560, 32, 20, 6912),
    "tiny": Size(64, 2, 2, 128, 64, 2, 2, 56, 14, 256, 2, 4),
}
VOCABULARY = 32064


def train(
    *,
    size: Literal["1.2b", "3b", "tiny"] = "1.2b",
    rows: int = 2,
    checkpointing: Checkpointing = False,
    contestants: tuple[str, ...] | None = None,
    split: bool = True,
    repeats: int = 10,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time a step (forward, backward, AdamW) of ours and of the peer on the same work; print where ours goes.

    Args:
        size: Decoder of 1.2B or 3B beside a ViT-H/14 at 378 px; ``tiny`` runs on a CPU to see that everything does.
        rows: Rows of a step, of 4,096 positions and 16 pictures each.
        checkpointing: What decoder and encoder recompute in the backward pass: nothing, whole layers, or ``selective``,
            what is cheap in them. The peer knows whole layers alone, and takes them for both.
        contestants: Some of them.
        split: Print where a step of ours goes.
        repeats: Timed steps of each; the median counts.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", "triton", "transformers", small=size == "tiny", flag="--size tiny")
    shape, peer = SIZES[size], 0.0
    clocks: list[tuple[Step, Clock]] = []
    known = dict(_contestants(shape, device, rows, checkpointing, clocks))
    wrong = [name for name in contestants or () if name not in known]
    if wrong:
        raise UserError(f"no contestant {wrong[0]}; expected some of {', '.join(known)} (contestants)")
    for name, make in known.items():
        if contestants is not None and name not in contestants:
            continue
        torch._dynamo.reset()
        clocks.clear()
        found = measured(make, device, repeats)
        if isinstance(found, str):
            print(f"{name:44} {found}", flush=True)
            continue
        ms, peak = found
        peer = ms if name == "peer, compiled" else peer
        tflops = step_flops(shape, rows) / ms / 1e9
        mfu = tflops / (peak_tflops(about["card"]) or math.inf)
        print(
            f"{name:44} {ms:8.1f} ms {tflops:6.0f} TFLOP/s, MFU {mfu:.2f}, "
            f"{rows * shape.row_tokens / ms * 1e3:8.0f} positions/s, {peak / 2**30:5.1f} GiB"
            + (f", {peer / ms:.2f} x the compiled peer" if peer else ""),
            flush=True,
        )
        line = {"size": size, "rows": rows, "checkpointing": checkpointing, "contestant": name, "ms": round(ms, 2)}
        line |= {"tflops": round(tflops), "positions_s": round(rows * shape.row_tokens / ms * 1e3)}
        parts = _split(*clocks[0], repeats) if split and clocks else dict.fromkeys(PARTS, math.nan)
        line |= {f"{part}_ms": round(1e3 * seconds, 2) for part, seconds in parts.items()}
        if split and clocks:
            print("    " + ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items()), flush=True)
        row = {**about, **line, "peak_gib": round(peak / 2**30, 2), "note": note}
        print("    " + append(results / "train.csv", [row]), flush=True)  # now: the next one may take long to compile


def step_flops(size: Size, rows: int) -> float:
    """Of a step as the peer does it: 6 x parameters x tokens of each tower and attention, causal halved; none twice."""
    patches = (size.image_px // size.patch_px) ** 2 + 1
    tower = size.vision_layers * 12 * size.vision_width**2
    decoder = size.layers * (4 * size.width**2 + 3 * size.width * size.ffn_width) + VOCABULARY * size.width
    seen = 6 * tower * patches + 12 * size.vision_layers * patches**2 * size.vision_width
    read = 6 * decoder * size.row_tokens + 6 * size.layers * size.row_tokens**2 * size.width
    return float(rows * (size.images * seen + read))


def _contestants(
    size: Size, device: torch.device, rows: int, checkpointing: Checkpointing, clocks: list[tuple[Step, Clock]]
) -> Iterator[tuple[str, Callable[[], Step]]]:
    for name, compiled in (("peer", False), ("peer, compiled", True)):
        yield name, partial(_peer, size, device, rows, bool(checkpointing), compiled)
    ours = partial(_ours, size, device, rows, checkpointing, clocks)
    yield "ours, bf16 states, whole rows", partial(ours, compiled=True, masters=False, documents=False)
    yield "ours, fp32 masters, documents, clipping", partial(ours, compiled=True, masters=True, documents=True)
    yield "ours, the same, not compiled", partial(ours, compiled=False, masters=True, documents=True)
    # fp32 weights under autocast and 8-bit moments, and the same with fp32 moments to hold it against
    mixed = partial(ours, compiled=True, masters=True, documents=True)
    yield "ours, mixed precision, documents, clipping", partial(mixed, lowered=False)
    yield "ours, the same, moments in 8 bits", partial(mixed, lowered=False, eight_bit=True)
    rough = partial(ours, compiled=True, masters=False, documents=False)  # other numerics than the peer: under no bar
    yield "ours, float8, bf16 states, whole rows", partial(rough, float8="tensorwise")
    yield "ours, float8 by rows, bf16 states, whole rows", partial(rough, float8="rowwise")


def _peer(size: Size, device: torch.device, rows: int, checkpointing: bool, compiled: bool) -> Step:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Assembled(size, VOCABULARY, checkpointing).train()
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens_BT = torch.randint(0, VOCABULARY, (rows, size.row_tokens), device=device)
    sides = (rows * size.images, 3, size.image_px, size.image_px)
    images = torch.randn(sides, device=device, dtype=torch.bfloat16)
    forward: Callable[..., Any] = torch.compile(model) if compiled else model

    def step() -> None:
        forward(tokens_BT, images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_model(
    size: Size,
    device: torch.device,
    checkpointing: Checkpointing,
    spread: Callable[[MM1], None] = lambda model: None,
    whole: Whole = nullcontext,
) -> MM1:
    """The same towers with our connector and decoder, spread over ranks if need be, filled with random weights."""
    vision = {"name": "ViT-H-14-378-quickgelu", "checkpointing": checkpointing}
    if size.vision_width != 1280:
        vision |= {"image_px": size.image_px, "width": size.vision_width, "layers": size.vision_layers}
        vision |= {"heads": size.vision_heads, "ffn_width": 4 * size.vision_width}
    decoder = {"vocabulary": VOCABULARY, "width": size.width, "layers": size.layers, "heads": size.heads}
    decoder |= {"ffn_width": size.ffn_width, "checkpointing": checkpointing}
    parts = {
        "vision": {"class_path": "mm1.model.vision.OpenClip", "init_args": vision},
        "connector": {"class_path": "mm1.model.connector.CAbstractor", "init_args": {"tokens": size.side**2}},
        "decoder": {"class_path": "mm1.model.decoder.Decoder", "init_args": decoder},
    }
    model = build({"class_path": "mm1.model.mm1.MM1", "init_args": parts})
    spread(model)
    model.to_empty(device=device).init_weights(0, whole)
    return model.train()


def our_batch(size: Size, device: torch.device, rows: int, documents: bool) -> Batch:
    """As many pictures as the peer's rows have: before all text, or each at the head of a document."""
    tokens_BT = torch.randint(0, VOCABULARY, (rows, size.row_tokens))
    at_T, picture = torch.arange(size.row_tokens), size.side**2
    length = size.row_tokens
    if documents:
        length = max(-(-size.row_tokens // size.images), picture + 1)
        tokens_BT[:, at_T % length < picture] = IMAGE
    else:
        tokens_BT[:, : size.images * picture] = IMAGE
    segments_BT, positions_BT = ((t).expand(rows, -1).contiguous() for t in (at_T // length + 1, at_T % length))
    targets_BT = targets_of(tokens_BT, segments_BT, torch.ones_like(tokens_BT, dtype=torch.bool))
    sides = (rows * size.images, 3, size.image_px, size.image_px)
    images = torch.randint(0, 256, sides, dtype=torch.uint8)
    return Batch(tokens_BT, targets_BT, segments_BT, positions_BT, torch.zeros_like(tokens_BT), images).to(device)


def _ours(
    size: Size,
    device: torch.device,
    rows: int,
    checkpointing: Checkpointing,
    clocks: list[tuple[Step, Clock]],
    *,
    compiled: bool,
    masters: bool,
    documents: bool,
    float8: Recipe = "none",
    lowered: bool = True,
    eight_bit: bool = False,
) -> Step:
    torch.manual_seed(0)
    model = our_model(size, device, checkpointing)
    model.decoder.across_documents = not documents
    convert(model, float8, device)
    if lowered:
        lower(model)
    if compiled:
        model.compile_parts()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    states: States = "float32" if masters else "bfloat16"
    rates: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer: MasterAdamW | InBlocks = MasterAdamW(groups, **rates, states=states, masters=masters)
    if eight_bit:
        optimizer = InBlocks(groups, **rates)
    batch = our_batch(size, device, rows, documents)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=not lowered):
            sums = model.losses(batch)
        clock.mark("loss")
        (sums.cross_entropy / sums.targets).backward()
        clock.mark("encoder")
        if isinstance(optimizer, InBlocks):
            clip_gradients(model.parameters(), 1.0)
        elif masters:
            optimizer.scale = (1.0 / (gradient_norm(model.parameters()) + 1e-6)).clamp(max=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    clock = Clock(model, device)
    clocks.append((step, clock))
    return step


def _split(step: Step, clock: Clock, repeats: int) -> dict[str, float]:
    """Seconds of each part of a step, by the clock that training runs have."""
    found = []
    for _ in range(repeats):
        clock.start()
        step()
        clock.mark("optimizer")
        found.append(clock.stop())
    return {part: median(times[part] for times in found) for part in PARTS}
