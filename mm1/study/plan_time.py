"""Seconds of a step: FLOPs by kind of work at the rate of that kind, bytes over links, and what hides behind what."""

from __future__ import annotations

from dataclasses import dataclass

from mm1.model.count import flops
from mm1.study.plan_cards import RATES, Card
from mm1.study.plan_job import Job, Layout
from mm1.study.plan_memory import Memory, places, sparse

PASSES = 21  # of timm's Adafactor over an fp32 tensor, read or written, counted in its source
WAITED = ("experts", "tensor")  # what a layer cannot go on without


@dataclass(frozen=True)
class Time:
    """One optimizer step on one GPU.

    Args:
        flops: By kind of work, those that the model needs.
        recomputed: The same, done a second time because activations were not kept.
        compute_s: By kind of work, recomputing included, and the optimizer.
        bytes: That a GPU sends, by kind of communication.
        link_s: Seconds of each.
        waiting_s: Communication that compute does not hide: what FSDP2 has beyond it, and all that layers wait for.
    """

    flops: dict[str, float]
    recomputed: dict[str, float]
    compute_s: dict[str, float]
    bytes: dict[str, float]
    link_s: dict[str, float]
    waiting_s: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(self.compute_s.values()) + self.waiting_s


def time(job: Job, on: Layout, card: Card, memory: Memory) -> Time:
    """What a step of ``job`` takes."""
    rows = job.rows(on) * job.micro_batches
    work = {kind: value / on.tensor for kind, value in _work(job, rows).items()}
    again = _again(job, work)
    slower = 1.0 if job.compiled else RATES["eager"].share
    compute = {kind: (work[kind] + again[kind]) / (RATES[kind].share * slower * card.tflops * 1e12) for kind in work}
    # What is recomputed beside products is written once and read once, by way of memory. That compilers fuse some of it
    # is left out.
    bandwidth = RATES["optimizer"].share * card.memory_gb_s * 1e9
    compute["recomputing"] = 2 * rows * memory.cheap / bandwidth
    # The norm reads gradients; AdamW reads and writes all it keeps, reads gradients, writes weights, and reads them too
    # where they have no masters. Adafactor takes one operation after the other, each by way of memory.
    reads = 2 * job.gradient_bytes + job.weight_bytes * (1 if job.masters and job.weight_bytes < 4 else 2)
    moved = memory.learned * (job.gradient_bytes + 4 * PASSES if job.factored else reads) + 2 * memory.optimizer
    compute["optimizer"] = moved / bandwidth
    sent = _sent(job, on, memory, rows)
    speeds = _speeds(on, card)
    link = {kind: bytes / speeds[kind] for kind, bytes in sent.items()}
    hidden = sum(seconds for kind, seconds in link.items() if kind not in WAITED)
    before = sum(seconds for kind, seconds in compute.items() if kind != "optimizer")
    return Time(work, again, compute, sent, link, max(0.0, hidden - before) + sum(link[kind] for kind in WAITED))


def _work(job: Job, rows: int) -> dict[str, float]:
    """FLOPs of forward and backward by kind of work; rows are full, one document each, all text learned."""
    counted, positions = flops(job.model), rows * job.row_tokens
    pictures = rows * job.images
    texts = positions - pictures * job.model.connector.tokens
    spent = [min(window or job.row_tokens, job.row_tokens) for window in counted.windows_L]
    keys = sum(rows * (seen * (seen + 1) / 2 + (job.row_tokens - seen) * seen) for seen in spent)
    experts = 2.0 * sum(3 * ffn.experts.down[0].numel() * ffn.router.top_k for ffn in sparse(job))
    vision = (3 if counted.vision_learns else 1) * counted.vision + 3 * counted.connector
    return {
        "decoder": 3 * (positions * (counted.position - experts) + max(0, texts) * counted.target),
        "experts": 3 * positions * experts,
        "attention": 3 * keys * counted.key,
        "encoder": pictures * vision,
    }


def _again(job: Job, work: dict[str, float]) -> dict[str, float]:
    """A third of forward and backward is forward; the head is not recomputed, a difference that is left out."""
    model = job.model
    whole = {"encoder": model.vision.checkpointing is True and any(p.requires_grad for p in model.vision.parameters())}
    return {kind: value / 3 * whole.get(kind, model.decoder.checkpointing is True) for kind, value in work.items()}


def _sent(job: Job, on: Layout, memory: Memory, rows: int) -> dict[str, float]:
    """Bytes that leave a GPU in a step."""
    size, sums = job.gathered(on).itemsize, 4
    gather = reduce = 0.0
    kinds = places(job.model, on)
    for parameter in job.model.parameters():
        place = kinds[id(parameter)]
        share = parameter.numel() / place.cut * _ring(place.ways)
        gather += share
        reduce += share if parameter.requires_grad else 0.0
    decoder = job.model.decoder
    visits = sum(ffn.router.top_k for ffn in sparse(job))
    ways = 4 + (2 if decoder.checkpointing else 0)  # there and back, forward and backward, and recomputed
    row = rows * job.row_tokens * decoder.width * 2
    # A layer gathers rows and scatters sums twice, backward as forward; beside the layers the embedding and the
    # gradient of the hidden states are summed, which is twice a gather, and rows are gathered once each way.
    # What a product ends with is kept where products are.
    again = {False: 0, "selective": 2, True: 4}[decoder.checkpointing]
    turns = len(decoder.layers) * (8 + again) + 6
    return {
        "all-gather": 2 * job.micro_batches * size * gather,  # forward, and again backward
        "reduce-scatter": sums * reduce,
        "replicas": 2 * _ring(on.replicate) * sums * memory.learned,
        "experts": ways * _ring(on.experts) * visits * row / on.tensor,
        "tensor": turns * _ring(on.tensor) * row,
    }


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def _speeds(on: Layout, card: Card) -> dict[str, float]:
    """Bytes a second of each GPU: within a machine as long as all that take part stand in one.

    Beyond, what is gathered enters a machine once, by all its ports together, and is handed on inside; what copies of a
    model add up and what experts exchange goes through each GPU's own port.
    """
    inside = card.node_gb_s * RATES["node"].share * 1e9
    port = card.net_gb_s * RATES["net"].share * 1e9
    together = inside if on.each <= card.node_gpus else min(inside, card.node_gpus * port)
    return {
        "all-gather": together,
        "reduce-scatter": together,
        "replicas": inside if on.gpus <= card.node_gpus else port,
        "experts": inside if on.experts <= card.node_gpus else port,
        "tensor": inside if on.tensor <= card.node_gpus else port,
    }
