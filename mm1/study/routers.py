"""Every router of configs/ablations for the same number of steps: loss, load and speed in one table.

A router is one YAML, ``router-<name>.yaml``; a new one is found here without a line of code.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.moe.layer import Mixture, MoE
from mm1.runs import read_object
from mm1.study.arms import ABLATIONS, DENSE, SPARSE, WORLDS, Arm, Setting, chosen
from mm1.study.outcomes import Outcome, over_seeds, read
from mm1.study.plots import COLOURS, STYLE, canvas, count


@dataclass(frozen=True)
class Row:
    """One router of the table.

    Args:
        name: ``dense`` and ``plain`` are the tiny models; others their file's.
        outcome: Means over the seeds that ended; None where none did.
        seeds: How many ended.
        state: ``ok``, or what went wrong.
        looks_ahead: Whether a token's expert depends on tokens after it, so that its loss is no language model's.
    """

    name: str
    outcome: Outcome | None
    seeds: int
    state: str = "ok"
    looks_ahead: bool = False


COLUMNS: dict[str, Callable[[Outcome], str]] = {
    "held-out loss": lambda of: number(of.loss, 3),
    "max/mean load": lambda of: number(of.max_load, 2),
    "dead": lambda of: number(of.dead, 0 if of.dead is None or of.dead == int(of.dead) else 1),
    "dropped": lambda of: share(of.drop_rate),
    "covered": lambda of: share(of.coverage),
    "entropy": lambda of: number(of.entropy, 2),
    "z": lambda of: number(of.z, 2),
    "experts a token": lambda of: number(of.visited, 2),
    "positions/s": lambda of: f"{of.positions_per_s:,.0f}",
    "active": lambda of: count(of.active),
    "total": lambda of: count(of.total),
}
LEGEND = (
    "Load, drops and scores are means over the last fifth of training. Max/mean is the busiest expert's load over an "
    "even share, in the worst layer; dead are experts of all layers with less than a hundredth of one; dropped is the "
    "share of choices that found no room, covered that of tokens that an expert took; entropy is over that of even "
    "shares; z is the mean squared logsumexp of the scores. `*` looks ahead: a token's expert depends on tokens "
    "after it, so its loss is not comparable."
)


def routers(
    out: Path = Path("runs/routers"),
    *,
    corpus: Path | None = None,
    worlds: int = WORLDS,
    steps: int = 400,
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    device: str = "cpu",
    only: Sequence[str] = (),
) -> None:
    """Train them all, write routers.md, routers.csv and routers.png, print the table; a rerun goes on.

    Args:
        out: Folder of corpus, runs, logs and table.
        corpus: Shards for the tiny models; made of scenes if not given.
        worlds: How many worlds scenes draws then.
        steps: Training steps of every run.
        seeds: Every router is trained once with each.
        jobs: Runs at a time.
        device: ``cpu`` or ``cuda``.
        only: Names of the routers; all if none is given.

    Raises:
        UserError: A wrong option, no corpus, or routers that failed; the table has the others then.
    """
    setting = Setting(out, corpus, worlds, steps, seeds, jobs, device)
    known = {arm.name: arm for arm in arms()}
    picked = [known[name] for name in chosen([*known], only)]
    failed = setting.train(picked)
    rows = [row(setting, arm) for arm in picked]
    text = f"{markdown(rows)}\n\n{size(setting, picked)} {LEGEND}"
    (out / "routers.md").write_text(text + "\n")
    write_csv(rows, setting, out / "routers.csv")
    draw(rows, out / "routers.png")
    print(text, *(f"wrote {out / name}" for name in ("routers.md", "routers.csv", "routers.png")), sep="\n")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(picked) * len(seeds)} runs failed: {', '.join(failed)}; their logs are in "
            f"{out / 'logs'}; mend the cause and run the same command to go on"
        )


def arms() -> list[Arm]:
    """The dense tiny model, the sparse one with the plain top-k router, and every router that has a YAML."""
    named = sorted((path.stem.removeprefix("router-"), path) for path in ABLATIONS.glob("router-*.yaml"))
    return [Arm("dense", DENSE), Arm("plain", SPARSE), *(Arm(name, path) for name, path in named)]


def row(setting: Setting, arm: Arm) -> Row:
    """What came of a router over its seeds."""
    outcomes, faults = [], []
    for seed in setting.seeds:
        try:
            outcomes.append(read(setting.run(arm, seed)))
        except UserError as error:
            faults.append("diverged" if "diverged" in str(error) else "failed")
    if not outcomes:
        return Row(arm.name, None, 0, faults[0])
    state = f"{len(faults)} of {len(setting.seeds)} {faults[0]}" if faults else "ok"
    return Row(arm.name, over_seeds(outcomes), len(outcomes), state, looks_ahead(arm.model))


def looks_ahead(model: Path) -> bool:
    """Whether any sparse layer of a model is not causal where it is scored; a capacity there lets tokens compete."""
    parts = [*build(model).eval().modules()]
    competing = (part.capacity for part in parts if isinstance(part, MoE) and part.capacity is not None)
    return any(isinstance(part, Mixture) and not part.causal for part in parts) or any(
        capacity.evaluate is not None for capacity in competing
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [["router", *COLUMNS], ["---", *["--:"] * len(COLUMNS)]]
    for row in rows:
        cells = [show(row.outcome) for show in COLUMNS.values()] if row.outcome else ["–"] * len(COLUMNS)
        name = row.name + " *" * row.looks_ahead + f" ({row.state})" * (row.state != "ok")
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size(setting: Setting, arms: Sequence[Arm]) -> str:
    """One sentence: how much was trained, on what, and how long it took."""
    memory = read_object(setting.out / "phases.json", "the times of the stages")["stages"]
    runs = [setting.run(arm, seed) for arm in arms for seed in setting.seeds]
    times = [memory[run.folder.name] for run in runs if "ended" in memory.get(run.folder.name, {})]
    wall_s = max(time["ended"] for time in times) - min(time["began"] for time in times) if times else 0.0
    done = [run for run in runs if memory.get(run.folder.name, {}).get("done")]
    positions = median(run.history("train")[-1]["positions"] for run in done) if done else 0
    device = done[0].about()["device"] if done else setting.device
    seeds = "seed" if len(setting.seeds) == 1 else "seeds"
    return (
        f"{setting.steps:,} steps, {count(positions)} positions a run, of "
        f"{setting.corpus or f'scenes ({setting.worlds:,} worlds)'}; {seeds} {', '.join(map(str, setting.seeds))}; "
        f"{len(runs)} runs, {setting.jobs} at a time on {device} ({os.cpu_count()} cores), {wall_s / 60:.0f} minutes."
    )


def number(value: float | None, digits: int) -> str:
    """With so many decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """0.0512 as 5.1 %."""
    return "–" if value is None else f"{100 * value:.1f} %"


def write_csv(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """The same with all digits, for other programs."""
    numbers = list(Outcome.__dataclass_fields__)
    with path.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["router", "state", "steps", "seeds", "looks_ahead", *numbers])
        for row in rows:
            values: dict[str, Any] = asdict(row.outcome) if row.outcome else {}
            about = [row.name, row.state, setting.steps, row.seeds, int(row.looks_ahead)]
            table.writerow([*about, *(values.get(name) for name in numbers)])


PANELS: dict[str, Callable[[Outcome], float | None]] = {
    "held-out loss": lambda of: of.loss,
    "max/mean load": lambda of: of.max_load,
    "tokens covered": lambda of: of.coverage,
    "z": lambda of: of.z,
    "positions/s": lambda of: of.positions_per_s,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A row a router, from the lowest loss down, failed ones last; a panel a number."""
    rows = sorted(rows, key=lambda row: row.outcome.loss if row.outcome else math.inf)
    figure, axes = canvas(9.0, 0.9 + 0.21 * len(rows))
    with matplotlib.rc_context(STYLE):
        axes.remove()
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for panel, (name, value) in zip(panels, PANELS.items(), strict=True):
            panel.grid(True, axis="both")
            for at, row in enumerate(rows):
                if row.outcome and (x := value(row.outcome)) is not None:
                    panel.plot(
                        x, at, "o", markersize=4.5, clip_on=False, color=COLOURS["b" if row.looks_ahead else "a"]
                    )
            panel.set_title(name, loc="left", fontsize=8, color=COLOURS["muted"])
            panel.locator_params(axis="x", nbins=4)
            if name != "held-out loss":  # whose zero is out of sight
                panel.set_xlim(left=0)
        panels[0].set_yticks(range(len(rows)), [row.name for row in rows], color=COLOURS["ink"])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.savefig(path, dpi=160, facecolor=COLOURS["paper"])
