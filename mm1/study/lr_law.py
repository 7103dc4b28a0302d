"""How the best learning rate falls with size: ln rate = slope ln N + intercept, by least squares (MM1, section 4).

N counts the decoder's non-embedding parameters, of the dense twin for an MoE. The published law is one such line,
fitted to best points. From a whole grid the best rate of each size is first read off a parabola through the losses
around the lowest one, which is finer than the grid; that step is ours, the paper does not describe it.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from scipy import stats

from mm1.errors import UserError
from mm1.study.lr_grid import Grid, run_grid
from mm1.study.plots import COLOURS, STYLE, canvas, count

PUBLISHED_SLOPE, PUBLISHED_INTERCEPT = -0.4214, -0.5535
REACH = 2  # rates on each side of the best one that the parabola sees

Interval = tuple[float, float]


@dataclass(frozen=True)
class Law:
    """A fitted line in log space, with what is needed to say how sure it is.

    Args:
        slope: Of ln rate over ln N.
        intercept: ln rate at N = 1.
        slope_interval: 95 % t-interval.
        intercept_interval: 95 % t-interval.
        spread: Standard deviation of ln rate around the line, with n - 2 degrees of freedom.
        points: The (N, best rate) pairs that were fitted.
    """

    slope: float
    intercept: float
    slope_interval: Interval
    intercept_interval: Interval
    spread: float
    points: tuple[tuple[float, float], ...]

    def rate(self, size: float) -> float:
        """The rate that the line gives for ``size`` parameters."""
        return math.exp(self.slope * math.log(size) + self.intercept)

    def interval(self, size: float, level: float = 0.95) -> Interval:
        """Where the best rate of one more model of ``size`` parameters falls with probability ``level``."""
        x = np.log([n for n, _ in self.points])
        off_centre = (math.log(size) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        reach = stats.t.ppf((1 + level) / 2, len(x) - 2) * self.spread * math.sqrt(1 + 1 / len(x) + off_centre)
        return self.rate(size) * math.exp(-reach), self.rate(size) * math.exp(reach)

    def save(self, path: Path, **provenance: object) -> None:
        """Write the YAML that ``model.optimizer.law_file`` reads: slope and intercept, then where they come from."""
        law = {
            "slope": self.slope,
            "intercept": self.intercept,
            "slope_interval": list(self.slope_interval),
            "intercept_interval": list(self.intercept_interval),
            "spread": self.spread,
            "points": [list(point) for point in self.points],
            **provenance,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(law, sort_keys=False))


def fit(points: list[tuple[float, float]]) -> Law:
    """Ordinary least squares of ln rate on ln N.

    Args:
        points: (N, best rate), at least three sizes; a size may stand several times.

    Raises:
        UserError: Too few sizes for an interval.
    """
    sizes = {n for n, _ in points}
    if len(sizes) < 3:
        raise UserError(
            f"the results hold {len(sizes)} sizes; expected at least 3, since a line through two points has no "
            f"interval; add sizes to the CSV or to --sizes"
        )
    x, y = np.log(np.array(points, dtype=float)).T
    line = stats.linregress(x, y)
    freedom = len(x) - 2
    t = float(stats.t.ppf(0.975, freedom))
    residuals = y - line.slope * x - line.intercept

    def around(value: float, error: float) -> Interval:
        return float(value - t * error), float(value + t * error)

    return Law(
        slope=float(line.slope),
        intercept=float(line.intercept),
        slope_interval=around(line.slope, line.stderr),
        intercept_interval=around(line.intercept, line.intercept_stderr),
        spread=float(np.sqrt((residuals**2).sum() / freedom)),
        points=tuple((float(n), float(rate)) for n, rate in points),
    )


def draw(law: Law, asked: list[float], path: Path) -> None:
    """The points, the line with its 95 % band, the published line, and the rates asked for, as a picture."""
    sizes = [n for n, _ in law.points] + asked
    x = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 100)
    figure, axes = canvas(5.2, 3.4)
    with matplotlib.rc_context(STYLE):
        low, high = zip(*(law.interval(size) for size in x), strict=True)
        axes.fill_between(x, low, high, color=COLOURS["a"], alpha=0.13, linewidth=0)
        axes.loglog(x, [law.rate(size) for size in x], color=COLOURS["a"], linewidth=1.6)
        axes.loglog(
            x, np.exp(PUBLISHED_SLOPE * np.log(x) + PUBLISHED_INTERCEPT), "--", color=COLOURS["muted"], linewidth=1
        )
        axes.loglog(*zip(*law.points, strict=True), "o", color=COLOURS["a"], markersize=4.5)
        for size in asked:
            axes.loglog(size, law.rate(size), "o", color=COLOURS["a"], markerfacecolor=COLOURS["paper"], markersize=5.5)
            told = f"{law.rate(size):.2g} at {count(size)}"
            axes.annotate(told, (size, law.rate(size)), xytext=(-5, -11), textcoords="offset points", ha="right")
        axes.annotate("fitted", (x[0], law.rate(x[0])), xytext=(2, 6), textcoords="offset points", color=COLOURS["a"])
        published = math.exp(PUBLISHED_SLOPE * math.log(x[-1]) + PUBLISHED_INTERCEPT)
        axes.annotate(
            "MM1", (x[-1], published), xytext=(4, 0), textcoords="offset points", va="center", color=COLOURS["muted"]
        )
        axes.set_xlabel("non-embedding parameters N of the decoder")
        axes.set_title("best peak learning rate, with the 95 % interval of one more size", loc="left", fontsize=8)
        figure.savefig(path, dpi=160, facecolor=COLOURS["paper"])


def read_results(path: Path) -> tuple[list[tuple[float, float]], list[str]]:
    """Points to fit, from a CSV of best points (columns ``n,lr``) or of a whole grid (``n,lr,loss``).

    Runs whose loss is not finite have diverged and are left out. Further columns are provenance and are ignored.

    Returns:
        (N, best rate) pairs, and warnings about sizes whose best rate is doubtful.

    Raises:
        UserError: No such file, other columns, or a cell that is no positive number.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected a CSV with columns n,lr or n,lr,loss, or --sizes to make one")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        table = csv.DictReader(lines, skipinitialspace=True)
        try:
            columns = table.fieldnames or []
            if not {"n", "lr"} <= set(columns):
                has = ",".join(columns) or "none"
                raise UserError(f"{path} has columns {has:.60}; expected n,lr or n,lr,loss (results)")
            rows = [
                {name: _number(row[name], name, f"{path}, line {table.line_num}") for name in columns if name in _READ}
                for row in table
            ]
        except csv.Error as error:
            raise UserError(f"{path} is no CSV ({error}); expected n,lr or n,lr,loss (results)") from None
    if "loss" not in columns:
        return [(row["n"], row["lr"]) for row in rows], []
    grid: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if math.isfinite(row["loss"]):
            grid[row["n"]].append((row["lr"], row["loss"]))
    best = {n: best_rate(tried, f"N = {n:,.0f}") for n, tried in sorted(grid.items())}
    return [(n, rate) for n, (rate, _) in best.items()], [warning for _, warning in best.values() if warning]


def best_rate(tried: list[tuple[float, float]], name: str = "this size") -> tuple[float, str | None]:
    """The rate at the bottom of a parabola in ln rate through the losses around the lowest one.

    Args:
        tried: (rate, held-out loss) of one size; a rate that stands several times (seeds) is sought by its mean loss.
        name: How a warning names the size.

    Returns:
        The rate, and a warning where there is no such bottom and the best of the tried rates stands instead.
    """
    losses = defaultdict(list)
    for rate, loss in tried:
        losses[rate].append(loss)
    rates = sorted(losses)
    means = [float(np.mean(losses[rate])) for rate in rates]
    i = int(np.argmin(means))
    if i in (0, len(rates) - 1):
        return rates[i], f"{name}: the best rate {rates[i]:.3g} is at the edge of those tried; try rates beyond it"
    around = slice(max(0, i - REACH), i + REACH + 1)
    x = np.log(rates[around]) - math.log(rates[i])
    weights = [math.sqrt(len(losses[rate])) for rate in rates[around]]
    curvature, tilt, _ = np.polyfit(x, means[around], 2, w=weights)
    bottom = -tilt / (2 * curvature) if curvature > 0 else math.inf
    if not x[0] < bottom < x[-1]:
        return rates[i], f"{name}: the losses around {rates[i]:.3g} have no bottom; the best rate tried stands instead"
    return rates[i] * math.exp(bottom), None


_READ = ("n", "lr", "loss")


def _number(text: str | None, column: str, where: str) -> float:
    """A cell as a number; only a loss may be empty, nan or infinite."""
    try:
        value = float(text or "nan")
        if column == "loss" or (math.isfinite(value) and value > 0):
            return value
    except ValueError:
        pass
    raise UserError(f"{where}: {column} is {text!r}; expected a positive number (results)")


def lr_law(
    results: Path,
    *,
    out: Path,
    predict: list[float],
    sizes: list[tuple[int, int]],
    rates: list[float],
    corpus: Path | None,
    steps: int,
) -> None:
    """Fit ln rate against ln N from a CSV, or run the grid that fills it first; plot, predict, write law.yaml.

    Args:
        results: CSV of best points (n,lr) or of a grid (n,lr,loss); with ``sizes``, new runs are appended to it.
        out: Folder for law.yaml, law.png and the runs of a grid.
        predict: Sizes whose rate is printed.
        sizes: (layers, width), each trained with each of ``rates``; none to fit what ``results`` holds.
        rates: Peak rates.
        corpus: Shards to train on.
        steps: Training steps of each run.

    Raises:
        UserError: A grid without rates or corpus, or results that cannot be fitted.
    """
    if wrong := [value for value in (*predict, *rates, steps) if not 0 < value < math.inf]:
        raise UserError(f"found {wrong[0]:g}; expected sizes, rates and steps above zero (--predict, --rates, --steps)")
    if sizes:
        if corpus is None or not rates:
            raise UserError("--sizes is given without --rates or --corpus; expected all three to train a grid")
        run_grid(Grid(sizes, rates, corpus, steps), results, out / "runs")
    points, warnings = read_results(results)
    law = fit(points)
    for warning in warnings:
        print(f"warning: {warning}")
    for name, value, (low, high), published in (
        ("slope", law.slope, law.slope_interval, PUBLISHED_SLOPE),
        ("intercept", law.intercept, law.intercept_interval, PUBLISHED_INTERCEPT),
    ):
        print(f"{name:9}  {value:8.4f}   95 % from {low:.4f} to {high:.4f}   MM1: {published}")
    for size in predict:
        low, high = law.interval(size)
        print(f"N = {size:.3g}: rate {law.rate(size):.3g}, 95 % of best rates from {low:.3g} to {high:.3g}")
    law.save(out / "law.yaml", results=results.name, warnings=warnings)
    draw(law, predict, out / "law.png")
    print(f"wrote {out / 'law.png'} and {out / 'law.yaml'}; training reads it as model.optimizer.law_file")
