"""The table of a README: scores of several models beside what needs no picture, as Markdown that nobody typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.runs import read_scores, score_files
from mm1.study.chapters import signed, task_title
from mm1.study.report import score

Key = tuple[str, str, int]  # stage, task, shots
METRICS = {"vqa_accuracy": "accuracy", "cider": "CIDEr"}
STAGES = {"plain": "", "chat": "after tuning"}  # by the style of the questions
LEGEND = (
    "**Right picture** / swapped picture, below it the 95 % interval of the right one. *Sight*: right minus swapped; "
    "*shots*: more than with 0 shots; both question by question, with 95 % intervals of a bootstrap over pictures."
)

DROPPED = "† Some prompts exceeded the context and lost their earliest demonstrations."


@dataclass(frozen=True)
class Model:
    """A column.

    Args:
        name: Its heading.
        paths: Run folders, folders of evaluations, or ``scores.json`` files: all that belongs to the model.
    """

    name: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Entry:
    """A task of one model at one number of shots: what ``scores.json`` says of the task, and of these shots."""

    task: dict[str, Any]
    at: dict[str, Any]


def results(models: Sequence[Model], *, without_pictures: Sequence[Path] = (), out: Path | None = None) -> None:
    """Print the table, or write it.

    Args:
        models: The columns.
        without_pictures: Scores of the same model trained without pictures, for a column of its own.
        out: The Markdown file; printed if not given.

    Raises:
        UserError: A path without scores, or two scores of one model for the same thing.
    """
    text = markdown(models, without_pictures)
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
        print(out.resolve())


def markdown(models: Sequence[Model], without_pictures: Sequence[Path] = ()) -> str:
    """The table and what there is to know about it, a row for each stage, task and number of shots."""
    found = [read(model) for model in models]
    never = read(Model("without pictures", tuple(without_pictures)))
    keys = sorted(
        {key for entries in found for key in entries}, key=lambda key: (key[1], list(STAGES).index(key[0]), key)
    )
    given = [
        name for name in ("question_only", "constant") if any(_baseline(found, key, name) is not None for key in keys)
    ]
    names = {"question_only": "question only", "constant": "best constant"}
    heads = ["", "n", *(model.name for model in models), *(["trained without pictures"] if never else [])]
    heads += [names[name] for name in given]
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])]
    for key in keys:
        cells = [_label(key, found), _n(found, key), *(_cell(entries.get(key)) for entries in found)]
        cells += [_unseen(never.get(key))] if never else []
        lines.append(_line([*cells, *(score(_baseline(found, key, name)) for name in given)]))
    lost = any(entry.at.get("dropped") for entries in found for entry in entries.values())
    return "\n".join([*lines, "", LEGEND, *[DROPPED] * lost, *_overlaps(models)])


def read(model: Model) -> dict[Key, Entry]:
    """All that a model was scored on.

    Raises:
        UserError: As :func:`results`.
    """
    entries: dict[Key, Entry] = {}
    origin: dict[Key, Path] = {}
    for path in (file for given in model.paths for file in score_files(given)):
        scores = read_scores(path)
        style = (scores.get("settings") or {}).get("style", "plain")
        for name, task in scores["tasks"].items():
            for shots, at in task["shots"].items():
                key = (style, name, int(shots))
                if key in entries:
                    raise UserError(
                        f"{origin[key]} and {path} both have {name} at {shots} shots for {model.name}; expected one of "
                        f"them, named as a file"
                    )
                entries[key], origin[key] = Entry(task, at), path
    return entries


def _label(key: Key, found: list[dict[Key, Entry]]) -> str:
    stage, task, shots = key
    about = next(entries[key].task for entries in found if key in entries)
    metric = METRICS.get(about["metric"], about.get("title", about["metric"]))
    told = f"{task_title(task)}, {metric}, {shots}-shot"
    return f"{told} {STAGES[stage]}".rstrip()


def _cell(entry: Entry | None) -> str:
    """**31.2** / 9.8, and what of it sight and demonstrations are worth."""
    if entry is None or entry.at["sighted"] is None:
        return "–"
    dagger = "†" * bool(entry.at.get("dropped"))
    lines = [f"**{score(entry.at['sighted'])}**{dagger} / {score(entry.at['blind'])}"]
    if ends := entry.at.get("interval"):
        lines.append(f"<sub>{score(ends[0])} to {score(ends[1])}</sub>")
    for name, told in (("gain", "sight"), ("over_zero_shot", "shots")):
        if entry.at.get(name) is not None:
            low, high = (signed(end) for end in entry.at[f"{name}_interval"])
            lines.append(f"<sub>{told} {signed(entry.at[name])} ({low} to {high})</sub>")
    return "<br>".join(lines)


def _unseen(entry: Entry | None) -> str:
    """A model that never saw a picture is asked with a blank one, or where it was not, with the right one."""
    at = entry.at if entry else {}
    return score(at["blank"] if at.get("blank") is not None else at.get("sighted"))


def _n(found: list[dict[Key, Entry]], key: Key) -> str:
    counts = {entries[key].task["n"] for entries in found if key in entries}
    return " / ".join(map(str, sorted(counts)))


def _baseline(found: list[dict[Key, Entry]], key: Key, name: str) -> float | None:
    values = (entries[key].task.get(name) for entries in found if key in entries)
    return next((value for value in values if value is not None), None)


def _overlaps(models: Sequence[Model]) -> list[str]:
    """How many scored pictures the models were trained on, where their scores say it."""
    lines = []
    for model in models:
        counted = [read_scores(path).get("overlap") for given in model.paths for path in score_files(given)]
        for shared in dict.fromkeys((o["pictures"], o["trained"], o["scored"]) for o in counted if o):
            lines.append(
                f"{model.name}: {shared[0]} of {shared[1]} pictures trained on are among {shared[2]} scored ones."
            )
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
