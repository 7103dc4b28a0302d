"""The page people look at: two models beside each other, in one HTML file that needs nothing else.

Everything on it is read from run folders; a section whose numbers a run does not hold is left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mm1
from mm1.page import environment, write
from mm1.study.chapters import chapter, findings, flops_note, headline, models, signed
from mm1.study.compare import Side, sides
from mm1.study.plots import count
from mm1.study.samples import RULE


def render(
    both: tuple[Side, Side],
    path: Path,
    *,
    title: str,
    data: str = "",
    phases: dict[str, Any] | None = None,
    corpus: dict[str, Any] | None = None,
    beside: bool = False,
) -> Path:
    """Write the report.

    Args:
        both: The two models, with the same number of runs each.
        path: The HTML file.
        title: Its heading.
        data: One sentence on what was trained and scored on.
        phases: Content of ``phases.json``, for the section on time.
        corpus: The corpus manifest, for the section on data.
        beside: Both were trained at the same time on one machine, so seconds are of shared hardware.
    """
    pairs = list(zip(both[0].runs, both[1].runs, strict=True))
    about = both[0].runs[0].about
    page = (
        environment("mm1.study", count, percent, signed, duration, interval, score, expected)
        .get_template("report.html")
        .render(
            title=title,
            data=data,
            sides=both,
            headline=headline(both),
            findings=findings(both, pairs[0]),
            models=models(both),
            flops_note=flops_note(both),
            chapters=[chapter(both, pair) for pair in pairs],
            sample_rule=RULE,
            phases=timeline(phases) if phases else None,
            corpus=corpus_rows(corpus) if corpus else None,
            beside=beside,
            version=mm1.__version__,
            machine=" / ".join(dict.fromkeys(side.runs[0].about.get("machine", "an unnamed machine") for side in both)),
            started=about.get("started", ""),
        )
    )
    return write(path, page)


def compare(run_a: Path, run_b: Path, *, out: Path = Path("report.html")) -> None:
    """Write the report on two runs beside each other, such as a dense model and its MoE twin.

    Args:
        run_a: Run folder of the first, shown in blue.
        run_b: Run folder of the second, shown in orange.
        out: The HTML file.
    """
    a, b = sides(run_a, run_b)
    print(render((a, b), out, title=f"{a.name} beside {b.name}").resolve())


def percent(share: float | None) -> str:
    """0.4512 as 45.1 %."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(ends: list[float] | None) -> str:
    """[61.2, 68.9] as 61.2 to 68.9."""
    return "" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def score(value: float | None) -> str:
    """One decimal, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def expected(references: list[str] | None) -> str:
    """Reference answers, equal ones counted: red (7), orange (3); of long ones the first."""
    counted = Counter(references or []).most_common()
    if len(counted) > 1 and len(counted[0][0]) > 12:
        return f"{counted[0][0]} (and {len(counted) - 1} more)"
    return ", ".join(f"{answer} ({times})" if times > 1 else answer for answer, times in counted)


def duration(seconds: float) -> str:
    """75.2 as 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def corpus_rows(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the shards hold: a row per stream with documents, text tokens and pictures for training and held out."""
    rows = []
    for stream, splits in manifest["streams"].items():
        counts = {key: splits["train"].get(key) for key in ("documents", "text_tokens", "images", "cuts")}
        dropped = {reason: found["count"] for reason, found in splits.get("dropped", {}).items()}
        rows.append({"stream": stream, **counts, "held_out": splits["val"]["documents"], "dropped": dropped})
    return rows


def timeline(phases: dict[str, Any]) -> dict[str, Any]:
    """Stages as bars from when they began to when they ended, in percent of the whole job."""
    ended = [{"name": name, **record} for name, record in phases["stages"].items() if "ended" in record]
    whole = max((record["ended"] for record in ended), default=0.0) or 1.0
    for bar in ended:
        left = 100 * bar["began"] / whole
        bar |= {"left": left, "width": max(0.4, 100 * bar["ended"] / whole - left)}
    return {"bars": ended, "whole": whole}
