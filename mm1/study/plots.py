"""Charts as SVG that lives inside a page: its colours are the page's, so one drawing suits light and dark.

Figures are drawn in the light colours of :data:`COLOURS`; on the way to SVG each becomes the CSS variable of its name.
Text stays text: it takes the page's font, can be selected, and is read aloud with the chart's description.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

COLOURS = {
    "ink": "#1d1c1a",
    "muted": "#6d6862",
    "rule": "#dcd7cf",
    "a": "#2262a3",
    "b": "#bd5310",
    "paper": "#fdfcfa",
}
OVER, UNDER = (0.05, 0.50, 0.45), (0.58, 0.30, 0.68)  # teal and violet, mid-toned: both stand on light and on dark
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.linewidth": 0.6,
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name, its colour's name, its points, and whether it stands back behind the others."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Score:
    """A score with the right picture (filled) and with a swapped one (hollow), on a row counted from the top."""

    row: float
    colour: str
    right: float
    swapped: float | None
    right_interval: tuple[float, float] | None = None
    swapped_interval: tuple[float, float] | None = None


def count(value: float | None, billion: str = "B") -> str:
    """1234567 as 1.23 M; a dash for nothing. FLOPs count in G where parameters count in B."""
    if value is None:
        return "–"
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def canvas(width_in: float = 3.5, height_in: float = 2.3) -> tuple[Figure, Axes]:
    """An empty chart in the house style; drawing must happen under ``matplotlib.rc_context(STYLE)`` too."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        return figure, figure.add_subplot()


def svg(figure: Figure, description: str) -> str:
    """The figure as an ``<svg>`` element that takes the page's colours and font and describes itself."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": sha256(description.encode()).hexdigest()[:8]}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' id="[^"]*_\d+"', "", text)  # "axes_1" would stand once per chart
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description, quote=True)}"', 1)


def lines(
    curves: Iterable[Curve],
    x_label: str,
    y_label: str,
    description: str,
    *,
    zero: bool = False,
    span: float = 0.0,
    digits: int = 2,
) -> str:
    """Lines named at their right end, the y axis zoomed to where they spend their time.

    Args:
        curves: Faint ones are drawn thin, behind, and unnamed.
        x_label: With unit.
        y_label: With unit; stands above the axis.
        description: What a reader who cannot see the chart is told.
        zero: Draw the zero line and keep it in view.
        span: Least height of the y axis, so that noise around nothing looks like nothing.
        digits: Decimals of the value beside each name.
    """
    drawn = [curve for curve in curves if len(curve.x)]
    figure, axes = canvas()
    with matplotlib.rc_context(STYLE):
        for curve in drawn:
            weight: Any = (
                {"linewidth": 0.7, "alpha": 0.4, "zorder": 2} if curve.faint else {"linewidth": 1.6, "zorder": 3}
            )
            axes.plot(curve.x, curve.y, color=COLOURS[curve.colour], solid_capstyle="round", **weight)
        if zero:
            axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
        low, high = _window(drawn, zero, span)
        axes.set_ylim(low, high)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=8, color=COLOURS["muted"])
        _name_ends(axes, [curve for curve in drawn if not curve.faint], (low, high), digits)
    return svg(figure, description)


def _window(curves: list[Curve], zero: bool, span: float) -> tuple[float, float]:
    """Where the y axis runs: over all of the strong curves but the steep first quarter of their way."""
    strong = [(np.asarray(curve.x, float), np.asarray(curve.y, float)) for curve in curves if not curve.faint]
    settled = []
    for x, y in strong:
        start = x[0] + (x[-1] - x[0]) / 4
        settled.append(np.append(y[x >= start], np.interp(start, x, y)))
    values = np.concatenate([y[np.isfinite(y)] for y in settled] or [np.zeros(1)])
    values = values if values.size else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    high = max(high, low + span)
    room = 0.08 * (high - low) or 0.05
    return low - room, high + room


def _name_ends(axes: Axes, curves: list[Curve], window: tuple[float, float], digits: int) -> None:
    """Write each curve's name and last value at its end, pushed apart where they would overlap."""
    low, high = window
    apart = 0.11 * (high - low)
    ends = sorted(((float(np.clip(curve.y[-1], low, high)), curve) for curve in curves), key=lambda end: end[0])
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(height, heights[-1] + apart) if heights else height)
    shift = sum(height - end for height, (end, _) in zip(heights, ends, strict=True)) / max(1, len(ends))
    right = max((max(curve.x) for curve in curves), default=1.0)
    for height, (_, curve) in zip(heights, ends, strict=True):
        axes.annotate(
            f"{curve.name} {curve.y[-1]:.{digits}f}",
            (right, height - shift),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[curve.colour],
            fontweight="bold",
            annotation_clip=False,
        )


def dots(
    scores: Sequence[Score], rows: Sequence[str], baselines: dict[str, float], x_label: str, description: str
) -> str:
    """Scores as pairs of dots with their intervals; baselines are upright lines, named above.

    Args:
        scores: What to draw; row 0.2 stands a little under the first row.
        rows: Names of the rows, from the top.
        baselines: Value by name.
        x_label: With unit.
        description: What a reader who cannot see the chart is told.
    """
    figure, axes = canvas(height_in=0.75 + 0.5 * len(rows))
    with matplotlib.rc_context(STYLE):
        axes.grid(False)
        axes.grid(True, axis="x")
        for score in scores:
            _dumbbell(axes, score)
        for style, (name, value) in zip(("--", ":", "-."), baselines.items(), strict=False):
            axes.axvline(value, color=COLOURS["muted"], linewidth=0.9, linestyle=style, zorder=1, label=name)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), rows, color=COLOURS["ink"])
        axes.set_xlim(0, max(1.0, 1.1 * axes.dataLim.x1))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_label)
        if baselines:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=7.5, borderpad=0,
                        labelcolor=COLOURS["muted"], handlelength=1.8, columnspacing=1.2)  # fmt: skip
    return svg(figure, description)


def _dumbbell(axes: Axes, score: Score) -> None:
    colour = COLOURS[score.colour]
    for interval in (score.right_interval, score.swapped_interval):
        if interval:
            axes.plot(
                interval, [score.row] * 2, color=colour, linewidth=3.5, alpha=0.3, zorder=2, solid_capstyle="butt"
            )
    dot: Any = {"markersize": 5, "color": colour, "zorder": 3, "clip_on": False}
    if score.swapped is not None:
        axes.plot([score.swapped, score.right], [score.row] * 2, color=colour, linewidth=0.8, zorder=2)
        hollow = dot | {"markersize": 7, "zorder": 2.5, "markerfacecolor": COLOURS["paper"]}  # a ring where both agree
        axes.plot(score.swapped, score.row, "o", **hollow)
    axes.plot(score.right, score.row, "o", **dot)
    beyond = max(score.right, score.swapped or 0, *(score.right_interval or ()), *(score.swapped_interval or ()))
    axes.annotate(
        f"{score.right:.1f}", (beyond, score.row), xytext=(4, 0), textcoords="offset points", va="center",
        color=colour, fontweight="bold",
    )  # fmt: skip


def heat(share_TE: np.ndarray, x: Sequence[float], x_label: str, description: str) -> str:
    """How one MoE layer spread its tokens over time: clear at an even share, teal above it, violet below.

    Args:
        share_TE: [moments, experts], in any scale; each moment is divided by its mean.
        x: Where each moment stands.
        x_label: With unit.
        description: What a reader who cannot see the chart is told.
    """
    relative_ET = (share_TE / np.maximum(share_TE.mean(axis=1, keepdims=True), 1e-12)).T
    experts = relative_ET.shape[0]
    strength = np.clip(np.abs(relative_ET - 1), 0, 1)[..., None]
    colour = np.where(relative_ET[..., None] > 1, np.array(OVER), np.array(UNDER))
    figure, axes = canvas(height_in=1.0 + 0.09 * experts)
    with matplotlib.rc_context(STYLE):
        axes.grid(False)
        axes.imshow(
            np.concatenate([colour, strength], axis=-1),
            extent=(0, float(x[-1]), experts - 0.5, -0.5),
            aspect="auto",
            interpolation="none",
        )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(min(experts, 8), integer=True))
        axes.set_xlabel(x_label)
        axes.set_title("expert", loc="left", fontsize=8, color=COLOURS["muted"])
    return svg(figure, description)
