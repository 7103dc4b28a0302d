"""What the report says about two runs: numbers from their folders turned into sentences, tables and charts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from markupsafe import Markup

from mm1.study import plots
from mm1.study.compare import BUDGETS, Side, Trained, at_equal, differences, order, sources
from mm1.study.plots import Curve, Score
from mm1.study.samples import samples

IN_CONTEXT = "icl"  # questions about words that only the prompt defines; its blind arm swaps the definitions
METRICS = {"vqa_accuracy": "VQA accuracy, %", "cider": "CIDEr × 100"}
POSITIONS = "positions seen, text and image"
AXES = {"positions": POSITIONS, "flops": "training FLOPs, all parts", "time_s": "seconds of training"}
SHARES = {"documents": "documents", "text": "text tokens", "image": "image tokens", "positions": "all positions"}

Sides = tuple[Side, Side]
Pair = tuple[Trained, Trained]


def signed(value: float, digits: int = 1) -> str:
    """With a true minus sign, and a plus where it is due."""
    return f"{value:+.{digits}f}".replace("-", "−")


def chapter(sides: Sides, pair: Pair) -> dict[str, Any]:
    """All that is shown of one stage of training: its losses, its data, its experts, its scores."""
    return {
        "name": pair[0].name,
        "order": order(*pair),
        "equal": at_equal(*pair),
        "losses": losses(sides, pair),
        "sight": sight(sides, pair),
        "mix": mix(sides, pair),
        "load": load(sides, pair),
        "speed": speed(sides, pair),
        "scores": score_panels(sides, pair),
        "samples": [group | {"task": task_title(group["task"])} for group in samples(pair)],
        "differing": differences(*pair),
    }


def main_task(run: Trained) -> tuple[str, str, dict[str, Any]] | None:
    """Evaluation, name and scores of the largest set of questions that a run answered without examples."""
    questions = [found for found in _tasks(run) if found[2]["metric"] == "vqa_accuracy" and found[1] != IN_CONTEXT]
    answered = [found for found in questions if found[2]["shots"].get("0", {}).get("sighted") is not None]
    return max(answered, key=lambda found: found[2]["n"], default=None)


def headline(sides: Sides) -> list[dict[str, Any]]:
    """The score that matters most, large: that of the main task, beside what needs no picture."""
    found = []
    for side in sides:
        if main := main_task(side.runs[-1]):
            evaluation, name, task = main
            score = task["shots"]["0"]
            beside = {"a swapped picture": score["blind"], "the question alone": task.get("question_only")}
            known = {told: value for told, value in beside.items() if value is not None}
            where = f"{task_title(name)}, {_words(evaluation)}"
            found.append({"side": side, "value": score["sighted"], "n": task["n"], "where": where, "beside": known})
    return found


def findings(sides: Sides, pair: Pair) -> list[str]:
    """What the held-out losses say, in sentences that a rule wrote."""
    said = []
    for row in at_equal(*pair):
        gap = row["b"] - row["a"]
        word = "lower" if gap < 0 else "higher"
        said.append(
            f"At equal {row['budget']} the held-out loss of {sides[1].name} is {abs(gap):.3f} nats a token {word} "
            f"than that of {sides[0].name} ({row['b']:.3f} and {row['a']:.3f}, {pair[0].name})."
        )
    return said


def models(sides: Sides) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The table of the two models: groups of rows, one value a side; what a run does not say is a dash."""
    counts = [side.runs[0].about.get("parameters") or {} for side in sides]
    names = {"total": "in all", "active": "active per token", "non_embedding": "decoder without embedding"}
    groups = [("Parameters", [(name, *(plots.count(n.get(key)) for n in counts)) for key, name in names.items()])]
    for pair in zip(*(side.runs for side in sides), strict=True):
        rows = [
            ("positions", *(plots.count(run.last["positions"]) for run in pair)),
            ("FLOPs", *(plots.count(run.last["flops"], "G") for run in pair)),
            ("seconds", *(f"{run.last['time_s']:.0f}" for run in pair)),
            ("positions a second, median", *(_median_speed(run) for run in pair)),
        ]
        groups.append((pair[0].name.capitalize(), rows))
    return groups


def flops_note(sides: Sides) -> str:
    """Whether the encoder's FLOPs count, with its share."""
    parts = [side.runs[0].about.get("flops_parts") for side in sides]
    if not all(parts):
        return "FLOPs count every part of the model, the image encoder too; these runs do not say its share."
    told = "; ".join(
        f"{side.name}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in (part or {}).items())
        for side, part in zip(sides, parts, strict=True)
    )
    return f"FLOPs count every part of the model, the image encoder too. Shares of a training step: {told}."


def _median_speed(run: Trained) -> str:
    speeds = run.curve("positions_per_s", "train")[1]
    return plots.count(statistics.median(speeds)) if speeds else "–"


def _both(sides: Sides, pair: Pair) -> Iterator[tuple[Side, Trained]]:
    return zip(sides, pair, strict=True)


def _told(curves: list[Curve], digits: int = 2) -> str:
    """The ends of the named curves, for a chart's description."""
    return ", ".join(
        f"{curve.name} ends at {curve.y[-1]:.{digits}f}" for curve in curves if len(curve.y) and not curve.faint
    )


def losses(sides: Sides, pair: Pair) -> list[dict[str, Any]]:
    """Small multiples: loss over positions, all and per source, then the whole over FLOPs and over seconds."""
    wanted = [("all sources", "loss", "positions")]
    wanted += [(_words(source), f"loss/{source}", "positions") for source in sources(*pair)]
    wanted += [("all sources, by FLOPs", "loss", "flops"), ("all sources, by time", "loss", "time_s")]
    charts = []
    for title, key, by in wanted:
        curves = [
            Curve(side.name, side.key, *run.curve(key, "train", by), faint=True) for side, run in _both(sides, pair)
        ]
        curves += [Curve(side.name, side.key, *run.curve(key, "val", by)) for side, run in _both(sides, pair)]
        if any(curve.y for curve in curves if not curve.faint):
            told = f"{pair[0].name}, held-out loss, {title}, over {BUDGETS[by]}: {_told(curves)}."
            charts.append({"title": title, "svg": Markup(plots.lines(curves, AXES[by], "nats a token", told))})
    return charts


def sight(sides: Sides, pair: Pair) -> list[dict[str, Any]]:
    """Blind minus sighted held-out loss over positions: what looking at the right picture is worth."""
    keys = ["sight_gap", *(f"sight_gap/{source}" for source in sources(*pair))]
    charts = []
    for key in keys:
        curves = [Curve(side.name, side.key, *run.curve(key)) for side, run in _both(sides, pair)]
        if any(any(curve.y) for curve in curves):
            title = _words(key.partition("/")[2]) or "all sources"
            told = f"{pair[0].name}, what the right picture is worth, {title}: {_told(curves, 3)}."
            drawn = plots.lines(curves, POSITIONS, "nats a token", told, zero=True, span=0.05)
            charts.append({"title": title, "svg": Markup(drawn)})
    return charts


def speed(sides: Sides, pair: Pair) -> dict[str, Any] | None:
    """Throughput over the run."""
    curves = [Curve(side.name, side.key, *run.curve("positions_per_s", "train")) for side, run in _both(sides, pair)]
    if not any(curve.y for curve in curves):
        return None
    drawn = plots.lines(
        curves, POSITIONS, "positions a second", f"{pair[0].name}, throughput: {_told(curves, 0)}.", zero=True, digits=0
    )
    return {"title": pair[0].name, "svg": Markup(drawn)}


def mix(sides: Sides, pair: Pair) -> dict[str, Any] | None:
    """Realised shares per source, in every unit, beside the target; of the first side that logged them."""
    for side, run in _both(sides, pair):
        lines = [line for line in run.train if any(key.startswith("mix/") for key in line)]
        if not lines:
            continue
        last = lines[-1]
        names = list(dict.fromkeys(key.split("/")[2] for key in last if key.startswith("mix/")))
        target = run.about.get("mix_target") or {}
        asked = {name: target[name] / sum(target.values()) for name in target} if target else {}
        rows = [
            {"source": name, "target": asked.get(name), **{unit: last.get(f"mix/{unit}/{name}") for unit in SHARES}}
            for name in names
        ]
        padding = (
            statistics.fmean(line["padding"] for line in lines) if all("padding" in line for line in lines) else None
        )
        return {"rows": rows, "units": SHARES, "unit": run.about.get("mix_unit"), "side": side.name, "padding": padding}
    return None


def load(sides: Sides, pair: Pair) -> list[dict[str, Any]]:
    """For each side with experts, a heat map per MoE layer and the spread at the end."""
    found = []
    for side, run in _both(sides, pair):
        layers = []
        x = [line["positions"] for line in run.experts]
        for i, layer in enumerate(run.experts[-1]["layers"] if run.experts else []):
            share_TE = np.array([line["load"][i] for line in run.experts], dtype=float)
            end = share_TE[-1] / max(share_TE[-1].mean(), 1e-12)
            told = f"busiest {end.max():.2f} ×, idlest {end.min():.2f} × its even share"
            description = f"{run.name}, {side.name}, layer {layer}: load of {len(end)} experts; at the end {told}."
            drawn = Markup(plots.heat(share_TE, x, POSITIONS, description))
            layers.append({"title": f"layer {layer}", "note": told, "svg": drawn})
        if layers:
            found.append({"side": side, "layers": layers})
    return found


def score_panels(sides: Sides, pair: Pair) -> list[dict[str, Any]]:
    """For each task that either run was scored on: a chart and a table, rows by shots and side."""
    panels: dict[tuple[str, str], dict[str, Any]] = {}
    for side, run in _both(sides, pair):
        for evaluation, name, task in _tasks(run):
            panel = panels.setdefault((evaluation, name), {"rows": [], "warnings": [], "task": task})
            panel["warnings"] += [warning for warning in task.get("warnings", []) if warning not in panel["warnings"]]
            for shots, score in task["shots"].items():
                if score["sighted"] is not None:
                    row = {"side": side, "shots": int(shots), "margin": _margin(task, score), **score}
                    panel["rows"].append(row)
    for (evaluation, name), panel in panels.items():
        if name == IN_CONTEXT:
            panel["warnings"].insert(0, "swapped here means that the pictures which define the words changed places")
        panel["rows"].sort(key=lambda row: (row["shots"], row["side"].key))
        panel |= {
            "title": task_title(name),
            "evaluation": _words(evaluation),
            "metric": _metric(panel["task"]),
        }
        panel["svg"] = Markup(_score_chart(panel))
    return list(panels.values())


def _metric(task: dict[str, Any]) -> str:
    """What a task's number is; scores before format 3 only have a name for it."""
    return METRICS.get(task["metric"], task.get("title", task["metric"]))


def _score_chart(panel: dict[str, Any]) -> str:
    rows = panel["rows"]
    shots = list(dict.fromkeys(row["shots"] for row in rows))
    offset = {"a": -0.17, "b": 0.17}
    marks = [
        Score(
            shots.index(row["shots"]) + offset[row["side"].key],
            row["side"].key,
            row["sighted"],
            row["blind"],
            row.get("interval"),
            row.get("blind_interval"),
        )
        for row in rows
    ]
    baselines = {"question only": panel["task"].get("question_only"), "best constant": panel["task"].get("constant")}
    known = {name: value for name, value in baselines.items() if value is not None}
    told = [
        f"{row['side'].name}, {row['shots']}-shot: right picture {_one(row['sighted'])}, swapped {_one(row['blind'])}"
        for row in rows
    ]
    description = f"{panel['title']}, {panel['evaluation']}. {'; '.join(told)}."
    return plots.dots(marks, [f"{number}-shot" for number in shots], known, panel["metric"], description)


def _one(value: float | None) -> str:
    return "not asked" if value is None else f"{value:.1f}"


def _tasks(run: Trained) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for evaluation, scores in run.scores.items():
        for name, task in scores["tasks"].items():
            yield evaluation, name, task


def _margin(task: dict[str, Any], score: dict[str, Any]) -> float | None:
    """Points of the right picture over the better of what needs none."""
    guesses = [value for value in (score["blind"], task.get("question_only")) if value is not None]
    return score["sighted"] - max(guesses) if guesses else None


def task_title(name: str) -> str:
    """``vqa/scenes`` as people read it."""
    kind, _, of = name.partition("/")
    kind = {IN_CONTEXT: "made-up words", "vqa": "questions"}.get(kind, kind)
    return f"{kind} · {_words(of)}" if of else _words(kind)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", " ")
