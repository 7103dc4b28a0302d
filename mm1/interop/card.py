"""The model card that every export carries: what the model is, of what parts, trained how, how good, and where it ends.

Nothing in it is typed by hand. It says what the weights, ``origin.json`` and the run folder around the checkpoint say,
and ``unknown`` where they say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from mm1.interop.origin import Origin
from mm1.model.count import parameters
from mm1.model.mm1 import MM1
from mm1.model.pieces import is_sharded
from mm1.model.stored import Stored
from mm1.runs import Run

CARD = "README.md"
UNKNOWN = "unknown"
STAGES = 8  # runs that began from one another; a bound, should they go in a circle
KINDS = {"pretrain": "Pre-training", "sft": "Instruction tuning"}
METRICS = {"cider": "CIDEr", "vqa_accuracy": "accuracy"}

LOAD = """\
With mm1 itself:

```python
import mm1

model = mm1.load("FOLDER")
print(model.generate(["photo.jpg"], "What is this?"))
```

{in_transformers}

Without importing mm1 first, `from_pretrained("FOLDER", trust_remote_code=True)` finds the same classes; the package has
to be installed in either case (`pip install 'mm1[transformers]'`).

The language model alone, for whatever reads its family's layout: `mm1-convert export FOLDER OUT --to decoder`."""

TRANSFORMERS = """\
With transformers{first}:

```python
import mm1.interop.transformers_mm1
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
question = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
print(processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```"""


def write_card(found: Stored, model: MM1, folder: Path, *, to: str, name: str) -> None:
    """Write ``README.md`` into an exported folder.

    Args:
        found: The model at rest; a checkpoint inside a run folder brings its training and its scores.
        model: The same, built.
        folder: Where to.
        to: Which export it is, ``own`` or ``transformers``.
        name: What the model is called.
    """
    origin = Origin.from_json(found.origin_json)
    runs, scored = _runs(Path(found.origin)), Path(found.origin)
    sections = {
        "Parts": _parts(model, origin),
        "Training": "\n\n".join(map(_training, runs)),
        "Scores": _scores(runs[-1], scored.name) if runs else "",
    }
    earlier = _earlier(scored)
    told = {title: text or earlier.get(title) or f"Not recorded: {UNKNOWN}." for title, text in sections.items()}
    told |= {"How to load it": _loading(to), "Limits": _limits(model, runs)}
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in told.items())
    head = yaml.safe_dump(_front_matter(origin, to), sort_keys=False)
    (folder / CARD).write_text(f"---\n{head}---\n\n# {name}\n\n{_summary(model)}\n\n{body}\n", encoding="utf-8")


def _front_matter(origin: Origin, to: str) -> dict[str, Any]:
    licence = origin.decoder.licence if origin.decoder else None
    # that of the whole is for who publishes it to say
    about: dict[str, Any] = {
        "license": UNKNOWN,
        "library_name": "transformers" if to == "transformers" else "mm1",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mm1", "multimodal"],
    }
    base = (origin.decoder.config.get("_name_or_path") or "") if origin.decoder else ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        about["base_model"] = base
    parts = {"decoder_license": licence, "vision_license": origin.vision_licence}
    return about | {part: said for part, said in parts.items() if said}


def _summary(model: MM1) -> str:
    counts, spec = parameters(model), model.image_spec
    active = "" if counts.active == counts.total else f", of which a token meets {_number(counts.active)}"
    return (
        f"A multimodal language model after MM1 (arXiv 2403.09611): pictures and text in, text out. "
        f"{_number(counts.total)} parameters{active}. A picture is seen at {spec.size_px} x {spec.size_px} px "
        f"({spec.resize}) and becomes {spec.tokens} tokens. Written by `mm1-convert export`."
    )


def _parts(model: MM1, origin: Origin) -> str:
    decoder, vision = origin.decoder, origin.vision
    settings = (vision.get("init_args") or {}) if vision else {}
    named = [str(settings[key]) for key in ("name", "tag") if settings.get(key)]
    weights = Path(settings["weights"]).name if settings.get("weights") else None
    encoder_from = ", ".join([*named, *([weights] if weights else [])]) if vision else UNKNOWN
    decoder_from = f"{decoder.source} (family {decoder.family})" if decoder else UNKNOWN
    rows = [
        ("image encoder", model.vision, encoder_from, origin.vision_licence or UNKNOWN),
        ("connector", model.connector, "new with this model", "that of this model"),
        ("language model", model.decoder, decoder_from, (decoder.licence if decoder else None) or UNKNOWN),
    ]
    cells = [
        (part, f"`{type(module).__name__}`", _number(sum(p.numel() for p in module.parameters())), source, licence)
        for part, module, source, licence in rows
    ]
    return _table(("part", "class", "parameters", "began from", "licence"), cells)


def _runs(checkpoint: Path) -> list[Run]:
    """The run that wrote a checkpoint and those that it began from, the oldest first."""
    runs: list[Run] = []
    while len(runs) < STAGES and (checkpoint.is_file() or is_sharded(checkpoint)):
        run = Run(checkpoint.resolve().parent.parent)
        if not (run.folder / "run.json").is_file() or any(run.folder == known.folder for known in runs):
            break
        runs.insert(0, run)
        checkpoint = Path(str(_config(run).get("init_from") or "nowhere"))
    return runs


def _config(run: Run) -> dict[str, Any]:
    try:
        found = yaml.safe_load(run.config.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _training(run: Run) -> str:
    about, config, history = run.about(), _config(run), run.history("train")
    last = history[-1] if history else {}
    data = config.get("data") or {}
    lines = [f"### {KINDS.get(about.get('kind', ''), 'Training')}: {about.get('name', UNKNOWN)}", ""]
    facts = {
        "steps": f"{last.get('step', UNKNOWN)} of {about.get('steps', UNKNOWN)}",
        "positions": _number(last["positions"]) if "positions" in last else UNKNOWN,
        "rows a step, positions a row": f"{data.get('rows_per_step', UNKNOWN)}, {data.get('row_tokens', UNKNOWN)}",
        "began from": Path(config["init_from"]).name if config.get("init_from") else UNKNOWN,
        "on": about.get("device", UNKNOWN),
    }
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    unit = about.get("mix_unit", "positions")
    real = {key.removeprefix(f"mix/{unit}/"): share for key, share in last.items() if key.startswith(f"mix/{unit}/")}
    if target := about.get("mix_target"):
        whole = sum(target.values()) or 1
        rows = [
            (name, f"{100 * weight / whole:.1f} %", f"{100 * real[name]:.1f} %" if name in real else UNKNOWN)
            for name, weight in target.items()
        ]
        lines += ["", _table(("stream", f"share of {unit}, asked for", "seen"), rows)]
    losses = [line for line in run.history("val") if "loss" in line]
    if losses:
        lines += ["", f"Held-out loss after step {losses[-1]['step']}: {losses[-1]['loss']:.4f} nats a target."]
    return "\n".join(lines)


def _scores(run: Run, checkpoint: str) -> str:
    rows = []
    for name, scores in run.scores().items():
        if Path(str(scores.get("checkpoint", checkpoint))).name != checkpoint:
            continue
        for task, found in scores["tasks"].items():
            metric = METRICS.get(found.get("metric"), found.get("metric"))
            for shots, at in found["shots"].items():
                values = (_score(at, "sighted", "interval"), _score(at, "blind", "blind_interval"))
                others = (_plain(found.get(key)) for key in ("constant", "question_only"))
                rows.append((name, task, metric, str(found["n"]), shots, *values, *others))
    if not rows:
        return ""
    heads = ("evaluation", "task", "metric", "n", "shots", "score", "swapped picture", "best constant", "question only")
    told = "Scores in percent, CIDEr x 100, with 95 % intervals; beside them the same model shown another picture."
    return f"{told}\n\n{_table(heads, rows)}"


def _score(at: dict[str, Any], name: str, interval: str) -> str:
    ends = at.get(interval)
    return _plain(at.get(name)) + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else "")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _earlier(source: Path) -> dict[str, str]:
    """Sections of the card of the folder that is exported again."""
    card = source / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return dict(re.findall(r"^## (.+)\n\n((?:.|\n)*?)(?=\n+## |\n*\Z)", text, re.MULTILINE))


def _loading(to: str) -> str:
    first = "" if to == "transformers" else ", after `mm1-convert export FOLDER OUT --to transformers`, in OUT"
    return LOAD.format(in_transformers=TRANSFORMERS.format(first=first))


def _limits(model: MM1, runs: Sequence[Run]) -> str:
    kinds = [run.about().get("kind") for run in runs]
    length = (_config(runs[-1]).get("data") or {}).get("row_tokens") if runs else None
    lines = [
        f"It was trained on rows of {length or UNKNOWN} positions; of longer ones, and of more pictures than it was "
        f"shown at once, nothing is known.",
        f"A picture is made {model.image_spec.size_px} px small before it is seen: small print is lost.",
        "It can say what is not in the picture, with confidence. The scores above say how often on their tasks, and "
        "nothing about others.",
        "It was not made safe: no filter and no preference tuning stands between its data and its answers.",
    ]
    if kinds and "sft" not in kinds:
        lines.append("It was never tuned to follow instructions: let it go on from a text (`template='none'`).")
    return "\n".join(f"- {line}" for line in lines)


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{int(value):,}"
