"""What a run needs before it starts: memory per GPU by kind, seconds a step, communication, days, what fits.

    mm1-study plan --config configs/train/pretrain_30b.yaml --gpus 512
    mm1-study plan --config 30b 3b_moe --gpus 64 256 1024 --experts 8     # a Markdown table

A plan assumes full rows of one document each, all text learned, as many pictures as a row may have, and experts that
are evenly visited; it is an estimate and says what of it was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

from mm1.errors import UserError, at_least
from mm1.model.count import parameters
from mm1.runs import Run, write_json
from mm1.study.plan_cards import GIB, RATES, Card, card
from mm1.study.plan_job import Job, Layout, job, layout
from mm1.study.plan_memory import MARGIN, Memory, memory, sparse
from mm1.study.plan_time import Time, time
from mm1.study.plots import COLOURS, STYLE, canvas, count

MEMORY_BAR, TIME_BAR = 0.10, 0.15
NAMED = ("name", "precision", "lowered", "compiled", "row_tokens", "images")  # of a job, in a plan's record


@dataclass(frozen=True)
class Plan:
    """One job on so many GPUs of one kind."""

    job: Job
    on: Layout
    card: Card
    memory: Memory
    time: Time
    tokens: float

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return self.job.rows(self.on)

    @property
    def peak_gib(self) -> float:
        """On the fullest GPU."""
        return self.memory.peak(self.rows) / GIB

    @property
    def fits(self) -> bool:
        """Whether the card has that much."""
        return self.peak_gib <= self.card.memory_gib

    @property
    def largest(self) -> int:
        """Rows of the largest micro-batch that fits."""
        return self.memory.rows(self.card.memory_gib)

    @property
    def days(self) -> float:
        """For all tokens."""
        return self.tokens / (self.job.rows_per_step * self.job.row_tokens) * self.time.step_s / 86400

    @property
    def mfu(self) -> float:
        """Share of the data sheet's FLOPs; nothing counted for recomputing."""
        return sum(self.time.flops.values()) / self.time.step_s / (self.card.tflops * 1e12)

    @property
    def extrapolated(self) -> list[str]:
        """In what this goes beyond the runs that rates were measured in."""
        found = [] if self.card.measured else [f"rates of an {self.card.name} taken as the H200's shares"]
        found += [f"{self.on.gpus} GPUs (measured: 1 and 2)"] if self.on.gpus > 2 else []
        if self.on.tensor > 1:
            found.append(f"layers cut by {self.on.tensor} ranks (no run)")
        if self.job.mixed and self.on.gpus > 1:
            found.append("weights gathered in bf16 (no run)")
        size = parameters(self.job.model).total
        return found + ([f"{count(size)} parameters (measured: 1.3 B and 2.6 B)"] if size > 3e9 else [])

    def record(self) -> dict[str, Any]:
        """All of it as plain values, for ``plan.json``."""
        kinds = {kind: size / GIB for kind, size in self.memory.kinds(self.rows).items()}
        needed = {name: getattr(self.job, name) for name in NAMED}
        return {
            "job": {**needed, "rows_per_step": self.job.rows_per_step, "micro_batches": self.job.micro_batches},
            "parameters": asdict(parameters(self.job.model)),
            "layout": asdict(self.on),
            "card": asdict(self.card),
            "rows": self.rows,
            "memory_gib": kinds,
            "peak_gib": self.peak_gib,
            "fits": self.fits,
            "largest_rows": self.largest,
            "time": asdict(self.time),
            "step_s": self.time.step_s,
            "mfu": self.mfu,
            "tokens": self.tokens,
            "days": self.days,
            "rates": {name: asdict(rate) for name, rate in RATES.items()} | {"margin": MARGIN},
            "extrapolated": self.extrapolated,
        }


def make(of: Job, on: Layout, gpu: Card, tokens: float) -> Plan:
    """The plan of a job.

    Raises:
        UserError: Its rows cannot be shared by so many GPUs.
    """
    of.rows(on)
    held = memory(of, on)
    return Plan(of, on, gpu, held, time(of, on, gpu, held), float(tokens))


def plan(
    config: Sequence[str],
    gpus: Sequence[int],
    gpu: str = "h100",
    *,
    shard: int | None = None,
    replicate: int = 1,
    experts: int = 1,
    tensor: int = 1,
    tokens: float | None = None,
    rows: int | None = None,
    micro_batches: int | None = None,
    against: Path | None = None,
    out: Path = Path("runs/plan"),
) -> None:
    """Plan each configuration on each number of GPUs: a page of text for one, a table for several.

    Args:
        config: Training YAMLs, or short names such as ``30b``.
        gpus: How many; several make a table, where a step has a row for each GPU at least.
        gpu: Name of a card, or a YAML of its numbers.
        shard: As ``trainer.strategy`` has it.
        replicate: Likewise.
        experts: Likewise; one where the model has none.
        tensor: Likewise.
        tokens: Positions to train on; the configuration's steps if not given.
        rows: Rows of a step, in place of the configuration's.
        micro_batches: Of a step, likewise.
        against: A run folder, or a CSV whose last line has ``ms`` and ``peak_gib``, to compare with.
        out: Folder of ``plan.json`` and ``plan.png``.

    Raises:
        UserError: Something is missing, unknown or does not divide.
    """
    on_card = card(gpu)
    if tokens is not None:
        at_least(1, {"--tokens": tokens})
    plans = []
    for path in config:
        read = job(path, rows, micro_batches)
        for number in gpus:
            on = layout(number, replicate, shard, experts if sparse(read) else 1, tensor)
            least = on.readers * read.micro_batches
            more = replace(read, rows_per_step=max(read.rows_per_step, least)) if len(gpus) > 1 else read
            all_tokens = read.steps * read.rows_per_step * read.row_tokens if tokens is None else tokens
            plans.append(make(more, on, on_card, all_tokens))
    out.mkdir(parents=True, exist_ok=True)
    if len(plans) > 1:
        print(table(plans))
        write_json(out / "plan.json", [each.record() for each in plans])
        return
    [only] = plans
    record = only.record()
    print(describe(only))
    if against is not None:
        record["against"] = compare(only, against)
        print(*(f"{line}" for line in record["against"]["lines"]), sep="\n")
    write_json(out / "plan.json", record)
    draw(only, out / "plan.png")


def describe(of: Plan) -> str:
    """A plan for the terminal."""
    kinds, spent, on = of.memory.kinds(of.rows), of.time, of.on
    lines = [
        f"{of.job.name}: {count(parameters(of.job.model).total)} parameters, {of.job.precision}"
        f"{', bfloat16 weights' if of.job.lowered else ''}"
        f"{', compiled' if of.job.compiled else ''}, on {on.gpus} x {of.card.name} (replicate {on.replicate}, shard "
        f"{on.shard}, experts {on.experts}, tensor {on.tensor})",
        f"a step: {of.job.rows_per_step} rows of {of.job.row_tokens} positions with up to {of.job.images} pictures, on "
        f"each GPU {of.job.micro_batches} x {of.rows}",
        "",
        "memory of a GPU, GiB",
        *(f"  {kind:22}{size / GIB:9.2f}" for kind, size in kinds.items() if size),
        f"  {'together':22}{of.peak_gib:9.2f} of {of.card.memory_gib:.1f}",
        "",
        f"{'a step':24}{'TFLOP':>9}{'seconds':>9}",
        *(
            f"  {kind:22}{(spent.flops.get(kind, 0) + spent.recomputed.get(kind, 0)) / 1e12:9.1f}{seconds:9.3f}"
            for kind, seconds in spent.compute_s.items()
            if seconds
        ),
        f"  {'waiting for links':31}{spent.waiting_s:9.3f}",
        f"  {'together':22}{sum(spent.flops.values()) / 1e12:9.1f}{spent.step_s:9.3f}   {100 * of.mfu:.0f} % of "
        f"{of.card.tflops:.0f} TFLOP/s, recomputing not counted",
        "",
        f"{'sent by a GPU':24}{'GB':>9}{'seconds':>9}",
        *(f"  {kind:22}{size / 1e9:9.2f}{spent.link_s[kind]:9.3f}" for kind, size in spent.bytes.items() if size),
        "",
        f"{count(of.tokens)} positions take {of.days:.1f} days",
        _fit(of),
    ]
    return "\n".join(lines + [f"extrapolated: {what}" for what in of.extrapolated])


def _fit(of: Plan) -> str:
    if of.fits:
        return f"it fits; the largest micro-batch for this card is {of.largest} rows"
    if of.largest:
        return f"WARNING: it does not fit; the largest micro-batch for this card is {of.largest} rows"
    ways = {False: "checkpointing: selective or true, or ", "selective": "checkpointing: true, or ", True: ""}
    more = ways[of.job.model.decoder.checkpointing]
    return f"WARNING: it does not fit, not even one row; take {more}more GPUs (--gpus, --shard)"


def table(plans: Sequence[Plan]) -> str:
    """Several plans as Markdown."""
    lines = [
        "| model | GPUs | experts over | rows a step | GiB a GPU | of | fits up to | s a step | of which waiting | MFU "
        "| days for | |",
        "| --- " * 12 + "|",
    ]
    for of in plans:
        lines.append(
            f"| {of.job.name} | {of.on.gpus:,} | {of.on.experts} | {of.job.rows_per_step:,} | {of.peak_gib:.1f} | "
            f"{of.card.memory_gib:.0f} | {of.largest} rows | {of.time.step_s:.2f} | {of.time.waiting_s:.2f} | "
            f"{100 * of.mfu:.0f} % | {of.days:.1f}, {count(of.tokens)} | {'' if of.fits else 'does not fit'} |"
        )
    return "\n".join(lines)


def compare(of: Plan, found: Path) -> dict[str, Any]:
    """A plan beside what a run took: each ratio, and whether it is within the bar.

    Raises:
        UserError: The run says nothing of either.
    """
    measured = _from_csv(found) if found.suffix == ".csv" else _from_run(found, of.job)
    asked = {"peak_gib": (of.peak_gib, MEMORY_BAR), "step_s": (of.time.step_s, TIME_BAR)}
    lines, results = [], {}
    for name, (planned, bar) in asked.items():
        if (real := measured.get(name)) is None:
            lines.append(f"{name}: planned {planned:.3f}, {found} does not say")
            continue
        off = planned / real - 1
        results[name] = {"planned": planned, "measured": real, "off": off, "within": abs(off) <= bar}
        verdict = "within" if abs(off) <= bar else "BEYOND"
        lines.append(f"{name}: planned {planned:.3f}, measured {real:.3f}, {100 * off:+.1f} %, {verdict} {bar:.0%}")
    if not results:
        raise UserError(
            f"{found} says neither memory nor seconds of a step; expected a run of two logged steps or more"
        )
    return {**results, "lines": lines}


def _from_csv(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="") as lines:
            *_, last = csv.DictReader(lines)
        return {"step_s": float(last["ms"]) / 1e3, "peak_gib": float(last["peak_gib"])}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a CSV with ms and peak_gib (--against)") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no ms and peak_gib in its last line ({error}) (--against)") from None


def _from_run(folder: Path, of: Job) -> dict[str, float]:
    """From ``metrics.jsonl``: the median of seconds a step, compiling left out by it, and memory where it is logged."""
    run = Run(folder)
    run.about()
    lines = run.history("train")
    pairs = pairwise(lines)
    steps = [(b["time_s"] - a["time_s"]) / (b["step"] - a["step"]) for a, b in pairs if b["step"] > a["step"]]
    peaks = [line[name] for line in lines for name in ("peak_gib", "memory_gib") if name in line]
    return {"step_s": median(steps)} | ({"peak_gib": max(peaks)} if peaks else {}) if steps else {}


def draw(of: Plan, path: Path) -> None:
    """Bars of memory by kind, with the card's limit."""
    kinds = {kind: size / GIB for kind, size in of.memory.kinds(of.rows).items() if size}
    figure, axes = canvas(5.5, 0.9 + 0.22 * len(kinds))
    with matplotlib.rc_context(STYLE):
        axes.grid(False)
        axes.grid(True, axis="x")
        names = list(kinds)[::-1]
        axes.barh(names, [kinds[name] for name in names], color=COLOURS["a"], height=0.6)
        for place, name in enumerate(names):
            axes.annotate(f" {kinds[name]:.2f}", (kinds[name], place), va="center", color=COLOURS["ink"])
        colour = COLOURS["muted"] if of.fits else COLOURS["b"]
        axes.set_title(
            f"{of.job.name} on {of.on.gpus} x {of.card.name}: {of.peak_gib:.1f} of {of.card.memory_gib:.0f} GiB a GPU",
            loc="left",
            fontsize=8,
            color=colour,
        )
        axes.set_xlabel("GiB")
        axes.margins(x=0.12)
        figure.savefig(path, dpi=200, facecolor=COLOURS["paper"])
