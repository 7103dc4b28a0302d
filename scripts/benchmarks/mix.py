"""A training step on rows of a real mix, where pictures a row vary, beside the peer in the two ways it can be fed.

Documents are drawn with lengths as the mix of MM1 has them and 45 / 45 / 10 by positions. Ours packs them
(:mod:`mm1.data.pack`). The peer gets the same rows, without a document mask, or a document a row, padded to the longest
of its batch, as collators do. What counts is positions that are no padding, pictures' and text's, a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.contestants.assembled import Assembled, Size
from benchmarks.machine import RESULTS, append, where
from benchmarks.moe import Step, measured
from benchmarks.train import SIZES, VOCABULARY, our_model
from mm1.batch import IMAGE, Batch, targets_of
from mm1.data.pack import Limits, Piece, Queue, next_row
from mm1.train.masters import MasterAdamW, lower
from mm1.train.parallel import gradient_norm

# share of positions, fewest and most pictures and text tokens of a document
MIX = {"captions": (45, 1, 1, 12, 60), "interleaved": (45, 2, 8, 150, 1500), "text": (10, 0, 0, 200, 3000)}
LOOK_AHEAD = 64
BATCHES = 4  # different ones, in turn


def mix(
    *,
    size: Literal["1.2b", "3b", "tiny"] = "1.2b",
    rows: int = 2,
    contestants: tuple[str, ...] | None = None,
    repeats: int = 8,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time steps on packed and on padded documents; print useful positions a second.

    Args:
        size: Decoder of 1.2B or 3B beside a ViT-H/14 at 378 px; ``tiny`` runs on a CPU to see that everything does.
        rows: Packed rows of a step; padded ones take as many positions at most.
        contestants: Some of them.
        repeats: Timed steps of each, over four batches in turn; the median counts.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", "triton", "transformers", small=size == "tiny", flag="--size tiny")
    shape, lines = SIZES[size], []
    packed, padded = packed_batches(shape, rows), padded_batches(shape, rows)
    ways: dict[str, tuple[Callable[..., Step], list[Batch]]] = {
        "peer, a document a row": (partial(_peer, compiled=False), padded),
        "peer, our rows": (partial(_peer, compiled=False), packed),
        "peer, our rows, compiled": (partial(_peer, compiled=True), packed),
        "ours": (_ours, packed),
    }
    found: dict[str, float] = {}
    for name, (make, batches) in ways.items():
        if contestants is not None and name not in contestants:
            continue
        torch._dynamo.reset()
        on_device = [batch.to(device) for batch in batches]
        figures = measured(partial(make, shape, device, on_device), device, repeats)
        if isinstance(figures, str):
            print(f"{name:28} {figures}", flush=True)
            continue
        useful = sum(batch.tokens for batch in batches) / len(batches)
        full = useful / (sum(batch.tokens_BT.numel() for batch in batches) / len(batches))
        found[name] = useful / figures[0] * 1e3
        told = ", ".join(
            f"{found['ours'] / speed:.2f} x {other}" for other, speed in found.items() if name == "ours" != other
        )
        print(
            f"{name:28} {figures[0]:8.1f} ms, {found[name]:8.0f} useful positions/s, rows {100 * full:.0f} % full, "
            f"{figures[1] / 2**30:5.1f} GiB  {told}",
            flush=True,
        )
        line = {"size": size, "rows": rows, "contestant": name, "ms": round(figures[0], 2), "fill": round(full, 3)}
        line |= {"useful_s": round(found[name]), "peak_gib": round(figures[1] / 2**30, 2)}
        lines.append({**about, **line, "note": note})
    if lines:
        print(append(results / "mix.csv", lines))


def pieces(size: Size, source: int, seed: int = 0) -> Iterator[Piece]:
    """Documents of one source without end; what is longer than a row is cut to one."""
    _, few, many, short, long = list(MIX.values())[source]
    chance = random.Random(f"{seed}/{source}")
    scale = size.row_tokens / 4096
    for place in count():
        images = min(chance.randint(few, many), size.images)
        text = max(2, round(chance.randint(short, long) * scale))
        positions = min(images * size.side**2 + text, size.row_tokens)
        yield Piece(source, place, 0, place, positions, images)


def packed_batches(size: Size, rows: int) -> list[Batch]:
    """Rows as :mod:`mm1.data.pack` plans them."""
    weights = [share for share, *_ in MIX.values()]
    queues = [Queue(partial(next, pieces(size, source)), LOOK_AHEAD) for source in range(len(MIX))]
    given = [0.0] * len(MIX)

    def ranked() -> list[int]:
        return sorted(range(len(MIX)), key=lambda source: given[source] / weights[source])

    def book(piece: Piece) -> None:
        given[piece.source] += piece.positions

    limits = Limits(size.row_tokens, size.images, size.row_tokens / size.images)
    planned = [next_row(queues, limits, ranked, book) for _ in range(rows * BATCHES)]
    return [as_batch(size, planned[at : at + rows], size.row_tokens) for at in range(0, len(planned), rows)]


def padded_batches(size: Size, rows: int) -> list[Batch]:
    """A document a row, in the order in which the mix brings them, as many as fit into as many positions."""
    weights = [share for share, *_ in MIX.values()]
    streams, given, chance = [pieces(size, source) for source in range(len(MIX))], [0.0] * len(MIX), random.Random(0)
    batches: list[Batch] = []
    batch: list[Piece] = []
    while len(batches) < BATCHES:
        source = min(range(len(MIX)), key=lambda source: (given[source] / weights[source], chance.random()))
        piece = next(streams[source])
        given[source] += piece.positions
        longest = max(piece.positions, *(other.positions for other in batch), 0)
        if batch and (len(batch) + 1) * longest > rows * size.row_tokens:
            batches.append(as_batch(size, [[one] for one in batch], max(one.positions for one in batch)))
            batch = []
        batch.append(piece)
    return batches


def as_batch(size: Size, planned: list[list[Piece]], row_tokens: int) -> Batch:
    """Random tokens and pictures in the places that were planned."""
    g = torch.Generator().manual_seed(0)
    tokens_BT = torch.zeros(len(planned), row_tokens, dtype=torch.int64)
    segments_BT, positions_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
    for row, documents in enumerate(planned):
        at = 0
        for number, piece in enumerate(documents, 1):
            places = slice(at, at + piece.positions)
            tokens_BT[row, places] = torch.randint(1, VOCABULARY, (piece.positions,), generator=g)
            tokens_BT[row, at : at + piece.images * size.side**2] = IMAGE
            segments_BT[row, places], positions_BT[row, places] = number, torch.arange(piece.positions)
            at += piece.positions
    targets_BT = targets_of(tokens_BT, segments_BT, segments_BT > 0)
    images = sum(piece.images for documents in planned for piece in documents)
    pictures = torch.randint(0, 256, (images, 3, size.image_px, size.image_px), dtype=torch.uint8, generator=g)
    return Batch(tokens_BT, targets_BT, segments_BT, positions_BT, torch.zeros_like(tokens_BT), pictures)


def _ours(size: Size, device: torch.device, batches: list[Batch]) -> Step:
    torch.manual_seed(0)
    model = our_model(size, device, False)
    lower(model)
    if device.type == "cuda":
        model.compile_parts()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = MasterAdamW(groups, lr=1e-5, betas=(0.9, 0.95), eps=1e-8)
    turns = cycle(batches)

    def step() -> None:
        sums = model.losses(next(turns))
        (sums.cross_entropy / sums.targets).backward()
        optimizer.scale = (1.0 / (gradient_norm(model.parameters()) + 1e-6)).clamp(max=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class Fed(Assembled):
    """The peer on rows with pictures wherever they stand."""

    def forward(self, tokens_BT: Tensor, images: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """The mean cross-entropy of the text; ``valid_BT`` is false at padding, all is read if not given."""
        places_BT = tokens_BT == IMAGE
        x_BTD = self.language.get_input_embeddings()(tokens_BT.where(~places_BT, 0))
        features = self.connector(self.vision(pixel_values=images).last_hidden_state[:, 1:])
        x_BTD = x_BTD.masked_scatter(places_BT[..., None], features.to(x_BTD.dtype))
        left_out_BT = places_BT if valid_BT is None else places_BT | ~valid_BT
        labels = tokens_BT.masked_fill(left_out_BT, -100)
        mask = None if valid_BT is None else valid_BT.long()
        return self.language(inputs_embeds=x_BTD, attention_mask=mask, labels=labels).loss


def _peer(size: Size, device: torch.device, batches: list[Batch], *, compiled: bool) -> Step:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Fed(size, VOCABULARY, False).train()
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward: Callable[..., Any] = torch.compile(model) if compiled else model
    padded = any(int((batch.segments_BT > 1).sum()) == 0 for batch in batches)
    turns = cycle([(b.tokens_BT, b.images_ICHW.bfloat16() / 255, b.segments_BT > 0) for b in batches])

    def step() -> None:
        tokens_BT, images, valid_BT = next(turns)
        forward(tokens_BT, images, valid_BT if padded else None).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
