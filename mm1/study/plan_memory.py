"""Memory of one GPU by kind, at the backward pass's fullest moment: just begun, all activations there, few gradients.

Weights, gradients and moments are counted parameter by parameter as FSDP2 cuts them (along the first axis, the first
rank's part the largest); activations are what autograd keeps (:mod:`mm1.study.plan_kept`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mm1.model.decoder import Layer
from mm1.model.loss import CHUNK_TOKENS, CHUNK_TOKENS_GPU
from mm1.model.mm1 import MM1
from mm1.model.moe.experts import Experts
from mm1.model.moe.layer import Mixture, MoE
from mm1.model.moe.routing import Places
from mm1.model.plain_block import PlainBlock
from mm1.model.recompute import Checkpointing
from mm1.study.plan_cards import GIB
from mm1.study.plan_job import Job, Layout
from mm1.study.plan_kept import kept_on_gpu

# Share on top of all that is counted. Calibrated with docs/benchmarks/decoder.csv (`tests/mm1/study/test_plan.py` does
# it again), where it also stands for what the backward pass of one layer has in its hands.
MARGIN = 0.04
IN_FLIGHT = 4  # units of FSDP2 at once, assumed: in use, gathered ahead, its gradient, and one being reduced, in fp32


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Args:
        weights: Kept between steps.
        gradients: Of all that learns; whole ones where several micro-batches are added up before they are reduced.
        optimizer: Two moments, and masters.
        buffers: Gathered weights and gradients on their way; nothing on one GPU.
        copies: Of weights in bf16, which autograd keeps where weights are in fp32: of all layers, or of the one that is
            being recomputed.
        row: Activations of each row of a micro-batch.
        layer: Of the largest layer or block, per row.
        recomputed: Activations, per row, of the layer or block that is being recomputed, beyond those in ``row``.
        cheap: Activations that a row recomputes where products are kept.
        row_parts: ``row`` by part: decoder, pictures, loss.
        loss: Logits of one chunk and the gradient of the head.
        learned: Numbers that the optimizer here changes.
        alone: Whether no earlier micro-batch has left gradients, which then are there before the backward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    copies: float
    row: float
    layer: float
    recomputed: float
    cheap: float
    row_parts: dict[str, float]
    loss: float
    learned: float
    alone: bool = True

    def kinds(self, rows: int) -> dict[str, float]:
        """What stands in memory at the fullest moment, by kind; they add up to :meth:`peak`."""
        found = {"weights": self.weights, "optimizer states": self.optimizer}
        pictures = rows * self.row_parts["pictures"]
        others = {
            "activations": rows * (self.row - self.row_parts["pictures"]),
            "pictures": pictures,
            "recomputed layer": rows * self.recomputed,
            "bf16 copies": self.copies,
            "loss": self.loss,
        }
        # Gradients take the place of activations. The backward pass ends with all of the first and one layer of the
        # second; the optimizer works in place.
        held = 0.0 if self.alone else self.gradients
        begun, ended = held + sum(others.values()), rows * self.layer
        if self.gradients + ended > begun:
            held, others = self.gradients, dict.fromkeys(others, 0.0) | {"activations": ended}
        found |= {"gradients": held, **others, "gathered": self.buffers}
        return {**found, "margin": MARGIN * sum(found.values())}

    def peak(self, rows: int) -> float:
        """Bytes at the fullest moment."""
        return sum(self.kinds(rows).values())

    def rows(self, memory_gib: float) -> int:
        """The largest micro-batch that fits, in rows; 0 if none does."""
        rows = 0
        while rows < 4096 and self.peak(rows + 1) <= memory_gib * GIB:
            rows += 1
        return rows


def memory(job: Job, on: Layout) -> Memory:
    """What one GPU holds."""
    size = job.weight_bytes
    learns = [p for p in job.model.parameters() if p.requires_grad]
    kinds = places(job.model, on)
    whole_gradients = job.micro_batches > 1 and on.gpus > 1
    gradients = sum(p.numel() / kinds[id(p)].cut if whole_gradients else kinds[id(p)].local(p) for p in learns)
    parts, layer, once, cheap, copies = _row(job, on)
    model, head = job.model, job.model.decoder.head_VD
    # a chunk of a micro-batch; ranks that share the head hold it in fp32 and then in bf16 as well
    each = CHUNK_TOKENS_GPU * (2 if job.mixed else size) if on.tensor == 1 else CHUNK_TOKENS * (4 + 2)
    logits = each * model.decoder.vocabulary
    learned = sum(kinds[id(p)].local(p) for p in learns)
    return Memory(
        weights=size * sum(kinds[id(p)].local(p) for p in model.parameters()),
        gradients=job.gradient_bytes * gradients,
        optimizer=sum(kinds[id(p)].local(p) * job.kept_bytes(p, kinds[id(p)].cuts(p)) for p in learns),
        buffers=_buffers(job, on, kinds),
        copies=copies,
        row=sum(parts.values()),
        layer=layer,
        recomputed=once,
        cheap=cheap,
        row_parts=parts,
        loss=(logits + (4 + job.gathered(on).itemsize) * head.numel()) / on.tensor,
        learned=learned,
        alone=job.micro_batches == 1,
    )


@dataclass(frozen=True)
class Place:
    """How ranks share a parameter.

    Args:
        cut: Ranks that compute with a part each.
        ways: Ranks that share that part, as FSDP2 has it, and gather it.
        axis: Which of the parameter's axes FSDP2 cuts.
        model_axis: Which one the others do.
    """

    cut: int
    ways: int
    axis: int = 0
    model_axis: int = 0

    def local(self, parameter: Tensor) -> int:
        """Numbers on the first rank, which has the largest part."""
        shape = [*parameter.shape] or [1]
        if self.cut > 1:
            shape[self.model_axis] //= self.cut
        shape[self.axis] = -(-shape[self.axis] // self.ways)
        return prod(shape)

    def cuts(self, parameter: Tensor) -> int:
        """Ranks that have a part of each row."""
        last = parameter.ndim - 1
        return (self.cut if self.model_axis == last else 1) * (self.ways if self.axis == last else 1)


def places(model: MM1, on: Layout) -> dict[int, Place]:
    """How :mod:`mm1.train.parallel` places every parameter, by its id."""
    found = {id(p): Place(1, on.each) for p in model.parameters()}
    decoder = model.decoder
    found |= {id(p): Place(1, on.shard) for p in decoder.parameters()}
    if on.tensor > 1:
        cut = Place(on.tensor, on.shard)
        found |= {id(p): cut for p in (decoder.embedding.weight, decoder.head_VD)}
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            attention, ffn = layer.attention, layer.ffn
            found |= {id(p): cut for name in "qkv" for p in getattr(attention, name).parameters()}
            rows = Place(on.tensor, on.shard, model_axis=1)
            found[id(attention.o.weight)] = rows
            if isinstance(ffn, Mixture):
                found |= {id(p): Place(1, on.each) for p in ffn.parameters()}
            else:
                found |= {id(ffn.down.weight): rows, id(ffn.gate_up.weight): Place(on.tensor, on.shard, axis=1)}
    if on.experts > 1:
        apart = Place(on.experts, on.each // on.experts, axis=1)
        found |= {id(p): apart for experts in _experts(model) for p in experts.parameters()}
    return found


def _experts(model: nn.Module) -> list[Experts]:
    return [module for module in model.modules() if isinstance(module, Experts)]


def _buffers(job: Job, on: Layout, kinds: dict[int, Place]) -> float:
    if on.each == 1:
        return 0.0

    def gathered(unit: nn.Module | Iterable[Tensor]) -> float:
        found = unit.parameters() if isinstance(unit, nn.Module) else unit
        return sum(p.numel() / kinds[id(p)].cut for p in found)

    model, size = job.model, job.gathered(on).itemsize
    units = [*model.vision.blocks, model.connector, *model.decoder.layers]
    inner = {id(p) for unit in units for p in unit.parameters()}
    outer = gathered(p for p in model.parameters() if id(p) not in inner)  # the root stays gathered
    return 2 * size * outer + ((IN_FLIGHT - 1) * size + 4) * max(map(gathered, units))


@dataclass(frozen=True)
class _Kept:
    """What a part keeps: for each row, whatever the rows, of its input for each row; what waits for its backward."""

    row: float
    fixed: float
    entry: float
    waiting: float


def _row(job: Job, on: Layout) -> tuple[dict[str, float], float, float, float, float]:
    """Bytes.

    Activations of a row by part, those of its largest layer or block, those that it recomputes at once at most and
    those that it recomputes where products are kept, and copies.
    """
    decoder, vision = job.model.decoder, job.model.vision
    layers = _layers(job, on)
    largest = max(layer.row for layer in layers)
    copies = (max if decoder.checkpointing else sum)(layer.fixed for layer in layers)
    once, cheap = _recomputed(layers, decoder.checkpointing)
    whole = layers[0].entry * on.tensor
    parts = {"decoder": sum(layer.waiting for layer in layers), "loss": 3 * whole, "pictures": 0.0}
    # of the loss: the last answer, normed; its gradient
    if not job.images:
        return parts, largest, once, cheap, copies
    pixels = job.images * 3 * vision.image_px**2 * (4 + 2 * job.mixed)
    grid = (job.images, vision.grid**2, vision.width)
    connector = _keep(job, on, job.model.connector, lambda part, x: part(x), grid, compiled=False)
    parts["pictures"] = pixels + connector.row
    copies += connector.fixed
    if any(p.requires_grad for p in vision.parameters()):
        shape = (job.images, vision.grid**2 + 1, vision.width)
        block, blocks = vision.blocks[0], len(vision.blocks)
        seen = _keep(job, on, block, lambda part, x: part(x), shape, again=vision.checkpointing)
        if vision.checkpointing is True and isinstance(block, PlainBlock):
            seen = replace(seen, waiting=2 * seen.entry)  # it reads two
        parts["pictures"] += blocks * seen.waiting
        copies += 0.0 if vision.checkpointing else blocks * seen.fixed
        at_once, in_all = _recomputed([seen] * blocks, vision.checkpointing)
        once, cheap = max(once, at_once / on.tensor), cheap + in_all / on.tensor
        largest = max(largest, seen.row / on.tensor)
    parts["pictures"] /= on.tensor  # which are dealt out among ranks that share layers
    return parts, largest, once, cheap, copies


def _recomputed(layers: list[_Kept], how: Checkpointing) -> tuple[float, float]:
    """Of a row, what the backward pass recomputes at once at most, and in all beside products."""
    if how == "selective":
        parts = [layer.row - layer.waiting for layer in layers]
        return max(parts), sum(parts)
    return max(layer.row for layer in layers) if how else 0.0, 0.0


def _layers(job: Job, on: Layout) -> list[_Kept]:
    """Of each layer of the decoder; one of each kind is looked at."""
    known: dict[str, _Kept] = {}
    found, how = [], job.model.decoder.checkpointing
    for layer in job.model.decoder.layers:
        assert isinstance(layer, Layer)
        kind = str([(name, tuple(p.shape)) for name, p in layer.named_parameters()])
        if kind not in known:
            shape = (1, job.row_tokens, job.model.decoder.width)
            kept = _keep(job, on, layer, partial(_layer, job), shape, again=how, unread=layer.unread)
            away = sum(p.numel() for experts in _experts(layer) for p in experts.parameters()) * (1 - 1 / on.experts)
            known[kind] = _shared(replace(kept, fixed=max(0.0, kept.fixed - 2 * away)), on.tensor, how, job.compiled)
        found.append(known[kind])
    return found


def _shared(kept: _Kept, ranks: int, how: Checkpointing, compiled: bool) -> _Kept:
    """A layer of which ranks have a part each, and whole of what attention and feed-forward read."""
    if ranks == 1:
        return kept
    row = 2 * kept.entry + (kept.row - 2 * kept.entry) / ranks
    waiting = row if not how else kept.waiting / ranks
    if how == "selective" and not compiled:  # a rank's terms of two sums, and its stretch of the last
        waiting += (2 + 1 / ranks) * kept.entry
    return _Kept(row, kept.fixed, kept.entry / ranks, waiting)


def _keep(
    job: Job,
    on: Layout,
    part: nn.Module,
    call: Any,
    shape: tuple[int, ...],
    *,
    compiled: bool | None = None,
    again: Checkpointing = False,
    unread: tuple[int, int] | None = None,
) -> _Kept:
    """Of a row and of two; what both have in common is not the rows'."""
    compiled, kind = job.compiled if compiled is None else compiled, job.gathered(on)
    keep = partial(kept_on_gpu, part, call, dtype=kind, autocast=job.mixed, compiled=compiled)
    two_rows = (2 * shape[0], *shape[1:])
    one, two = keep(shape), keep(two_rows)
    row, entry = float(two - one), float(kind.itemsize * prod(shape))
    waiting = entry if again is True else row
    if again == "selective":
        waiting = float(keep(two_rows, selective=True, unread=unread) - keep(shape, selective=True, unread=unread))
    return _Kept(row, float(2 * one - two), entry, waiting)


def _layer(job: Job, layer: nn.Module, x_BTD: Tensor) -> tuple[Tensor, ...]:
    decoder = job.model.decoder
    ones_BT = torch.ones(x_BTD.shape[:2], dtype=torch.int64)
    rotation = decoder.rope.rotation(ones_BT, ones_BT, decoder.head_width, decoder.rope_base)
    mask = torch.ones(len(x_BTD), 1, 1, x_BTD.shape[1], dtype=torch.bool)
    answer, stats = layer(x_BTD, rotation, mask, Places.of_text(ones_BT > 0))
    return (answer,) if stats is None else (answer, stats.loss)


def sparse(job: Job) -> list[MoE]:
    """Sparse layers that have experts to travel to."""
    layers = (layer.ffn for layer in job.model.decoder.layers)
    return [ffn for ffn in layers if isinstance(ffn, Mixture) and isinstance(ffn, MoE)]
