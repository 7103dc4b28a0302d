"""The page on a run's routing: who goes where, by layer, modality, source and word, and how that came to be.

Held-out rows run through the checkpoint while hooks look at its routers; curves are those that training logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

import mm1
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError, at_least
from mm1.infer.assistant import Assistant
from mm1.model.connector import AttentionPool
from mm1.page import environment, palette, write
from mm1.runs import Run
from mm1.study import plots, routing_found, routing_plots
from mm1.study.plots import Curve
from mm1.study.report import percent
from mm1.study.routing_found import different, findings, loads, pairs, saturation, spread, visits
from mm1.study.routing_record import Recorded, Recorder, held_out

LAYERS_SHOWN, PICTURES_SHOWN, EXPERTS_SHOWN = 4, 6, 32
POSITIONS = "positions seen, text and image"
CURVES = {
    "max_load": ("busiest expert", "× its even share"),
    "dead": ("dead experts", "experts"),
    "entropy": ("entropy of a token's shares", "nats"),
    "logit_norm": ("norm of the router's logits", "norm"),
    "z": ("squared logsumexp of the logits", "nats²"),
    "dropped": ("dropped choices", "share"),
}


def routing(
    run: Path,
    *,
    corpus: Path | None = None,
    rows: int = 16,
    earlier: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> None:
    """Write the page on a run's routing.

    Args:
        run: Run folder of a sparse model.
        corpus: Route the held-out rows of another corpus than the run's.
        rows: Most rows of each source.
        earlier: An earlier checkpoint of the run, to tell what it already routed in the same way.
        out: The HTML file; ``routing.html`` in the run folder if not given.
        device: Where the model runs.

    Raises:
        UserError: A dense run, or rows or a checkpoint that are not there or do not fit.
    """
    at_least(1, {"--rows": rows})
    folder = Run(run)
    about, data = folder.about(), _data_of(folder)
    assistant = mm1.load(folder.last, device=device)
    recorded = _recorded(assistant, data, corpus, rows)
    kept = []
    if earlier is not None:
        before = mm1.load(earlier, device=device)
        if before.tokenizer.proto != assistant.tokenizer.proto:
            raise UserError(
                f"{earlier} has another tokenizer than {run}; expected an earlier checkpoint of the same run"
            )
        kept = saturation(recorded, _recorded(before, data, corpus, rows))
    shown = spread(recorded.layers, LAYERS_SHOWN)
    page = (
        environment("mm1.study", percent, plots.count)
        .get_template("routing.html")
        .render(
            run=about,
            recorded=recorded,
            corpus=(corpus or Path(data["corpus"])).name,
            version=mm1.__version__,
            palette=palette(recorded.experts),
            findings=findings(recorded, loads(recorded), kept),
            heats=heats(recorded),
            words=words(recorded, shown, assistant.tokenizer),
            experts_shown=EXPERTS_SHOWN,
            pictures=pictures(recorded, shown, assistant),
            pairs=matrices(recorded, shown),
            kept=kept,
            earlier=None if earlier is None else earlier.name,
            subtokens=subtokens(recorded, shown, assistant),
            curves=curves(folder),
            moments=moments(folder),
        )
    )
    print(write(out or run / "routing.html", page).resolve())


def _data_of(run: Run) -> dict[str, Any]:
    try:
        data = yaml.safe_load(run.config.read_text())["data"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{run.config} cannot be read; expected the configuration that mm1-train wrote") from None
    assert isinstance(data, dict)
    return data


def _recorded(assistant: Assistant, data: dict[str, Any], corpus: Path | None, rows: int) -> Recorded:
    recorder = Recorder(assistant.model)
    return recorder(held_out(data, assistant.model, assistant.tokenizer, corpus, rows))


def heats(recorded: Recorded) -> list[dict[str, Any]]:
    """A heat map for each kind of token."""
    charts = []
    for load in loads(recorded):
        busiest = load.relative_LE.max(1)
        told = ", ".join(f"layer {at} {most:.1f}" for at, most in zip(recorded.layers, busiest, strict=True))
        described = f"Load by layer and expert, {load.name}; the busiest expert, in even shares: {told}."
        drawn = Markup(routing_plots.by_layer(load.relative_LE, recorded.layers, described))
        charts.append({"title": load.name, "note": f"{load.tokens:,} tokens", "svg": drawn})
    return charts


def words(recorded: Recorded, shown: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For some layers, the experts with what they take; of many experts the busiest."""
    tables = []
    for at in shown:
        found = routing_found.experts(recorded, at, lambda token: spelled(tokenizer, token))
        busiest = sorted(found, key=lambda expert: -expert.share)[:EXPERTS_SHOWN]
        kept = sorted(busiest, key=lambda expert: expert.number)
        tables.append({"layer": recorded.layers[at], "experts": kept})
    return tables


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as people read it."""
    named = {tokenizer.bos: "⟨begin⟩", tokenizer.eos: "⟨end⟩", tokenizer.pad: "⟨pad⟩"}
    if token in named:
        return named[token]
    text = tokenizer.decode([token])
    if text.strip() and text.strip().isprintable() and "\ufffd" not in text:
        return text.strip()
    return {"\n": "⟨line⟩", " ": "⟨blank⟩", "": "⟨blank⟩"}.get(text, f"⟨{token}⟩")  # a lone blank decodes to nothing


def pictures(recorded: Recorded, shown: Sequence[int], assistant: Assistant) -> list[dict[str, Any]]:
    """Some pictures, and for some layers their cells in the colours of their experts."""
    colours = palette(recorded.experts)
    return _pictures(recorded, shown, assistant, {at: (recorded.best_M[at], colours) for at in shown})


def subtokens(recorded: Recorded, shown: Sequence[int], assistant: Assistant) -> dict[str, Any] | None:
    """How many experts the sub-tokens of a token visit, where a layer routes sub-tokens (MH-MoE, figure 5)."""
    parts = recorded.hot_MPE[0].shape[1]
    if parts == 1:
        return None
    counts = {at: different(recorded.hot_MPE[at]) for at in shown}
    most = max(int(count_M.max()) for count_M in counts.values())
    rows = []
    for at, count_M in counts.items():
        kinds = {"text": ~recorded.image_M, "pictures": recorded.image_M}
        means = {kind: float(count_M[here_M].mean()) for kind, here_M in kinds.items() if here_M.any()}
        rows.append({"layer": recorded.layers[at], **means})
    ramp = routing_plots.ramp(most)
    drawn = _pictures(recorded, shown, assistant, {at: (count_M - 1, ramp) for at, count_M in counts.items()})
    return {"parts": parts, "visits": visits(recorded), "rows": rows, "ramp": ramp, "pictures": drawn}


def _pictures(
    recorded: Recorded, shown: Sequence[int], assistant: Assistant, painted: dict[int, tuple[np.ndarray, list[str]]]
) -> list[dict[str, Any]]:
    connector = assistant.model.connector
    if isinstance(connector, AttentionPool):  # its tokens have no place in the picture
        return []
    drawn = []
    for picture in (recorded.pictures[at] for at in spread(range(len(recorded.pictures)), PICTURES_SHOWN)):
        here = slice(picture.first, picture.first + connector.tokens)
        overlays = [
            {"layer": recorded.layers[at], "cells": routing_plots.cells(value_M[here], colours)}
            for at, (value_M, colours) in ((at, painted[at]) for at in shown)
        ]
        source = recorded.sources[recorded.sources_M[picture.first]]
        if all(overlay["cells"] for overlay in overlays):
            drawn.append(
                {"photo": routing_plots.photograph(picture.pixels_CSS), "source": source, "overlays": overlays}
            )
    return drawn


def matrices(recorded: Recorded, shown: Sequence[int]) -> list[dict[str, Any]]:
    """Co-activation of some layers; none where a token visits one expert."""
    if visits(recorded) <= 1:
        return []
    charts = []
    for at, share_EE in ((at, pairs(recorded)[at]) for at in shown):
        others = np.where(np.eye(len(share_EE), dtype=bool), 0, share_EE)
        a, b = np.unravel_index(others.argmax(), others.shape)
        told = f"{100 * others[a, b]:.0f} % of the tokens of expert {a} also visit expert {b}"
        described = f"Co-activation in layer {recorded.layers[at]}; most: {told}."
        drawn = Markup(routing_plots.by_pair(share_EE, described))
        charts.append({"title": f"layer {recorded.layers[at]}", "note": told, "svg": drawn})
    return charts


def curves(run: Run) -> list[dict[str, Any]]:
    """What training logged of the routers, a line a layer: the first blue, the last orange, others faint."""
    lines = [line for line in run.history("experts") if "max_load" in line]
    charts = []
    for key, (title, unit) in CURVES.items() if lines else ():
        layers = lines[-1]["layers"]
        x = [line["positions"] for line in lines]
        drawn = []
        for at, layer in enumerate(layers):
            ends = at in (0, len(layers) - 1)
            colour = "a" if at == 0 else "b" if ends else "muted"
            drawn.append(Curve(f"layer {layer}", colour, x, [line[key][at] for line in lines], faint=not ends))
        if key in ("dead", "dropped") and not any(any(curve.y) for curve in drawn):
            continue  # a flat zero says nothing
        told = ", ".join(f"{curve.name} ends at {curve.y[-1]:.2f}" for curve in drawn if not curve.faint)
        chart = plots.lines(drawn, POSITIONS, unit, f"{title}: {told}.", zero=key == "dead")
        charts.append({"title": title, "svg": Markup(chart)})
    return charts


def moments(run: Run) -> list[dict[str, Any]]:
    """Load of every expert over training, in some layers."""
    lines = run.history("experts")
    charts = []
    for at in spread(lines[-1]["layers"], LAYERS_SHOWN) if lines else ():
        layer, share_TE = lines[-1]["layers"][at], np.array([line["load"][at] for line in lines], float)
        described = f"Load of {share_TE.shape[1]} experts of layer {layer} over training."
        drawn = plots.heat(share_TE, [line["positions"] for line in lines], POSITIONS, described)
        charts.append({"title": f"layer {layer}", "svg": Markup(drawn)})
    return charts
