"""MM1's own tables, few-shot and after tuning, with published rows beside ours, and what of ours is not comparable.

Published numbers stand in ``eval/published/*.csv`` as gathered from public notes; ``?`` marks a number that is
remembered and for which no source was at hand. They are printed as "(unverified)".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.scores import DAGGER, number
from mm1.errors import UserError
from mm1.runs import read_scores, score_files

Kind = Literal["fewshot", "sft"]
NONE = "–"
PUBLISHED = Path(__file__).parent / "published"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNVERIFIED = "(unverified)"
CIRCULAR = "-circular"
# Warnings of a task that say its number is not the benchmark's.
PARTIAL = r"questions left out|questions lack turns|subjects are missing|^without |have not two questions|not finished"
CHOICES = ("choice", "mmbench", "mmbench_circular", "mmmu", "scienceqa")
JUDGED = ("llava_bench", "mm_vet", "mathvista")


@dataclass(frozen=True)
class Part:
    """One number of a cell.

    Args:
        tasks: Regular expression of tasks that give it, tried against whole names.
        published: That of the split which the published number is of.
        also: Name of a further number of the task, where it is not the task's own.
    """

    tasks: str
    published: str
    also: str = ""


FEWSHOT: Mapping[str, tuple[Part, ...]] = {
    "COCO": (Part(r"coco/.*|captions/coco.*", r"coco/karpathy-test"),),
    "NoCaps": (Part(r"nocaps/.*", r"nocaps/val"),),
    "TextCaps": (Part(r"textcaps/.*", r"textcaps/val"),),
    "VQAv2": (Part(r"vqav2/.*|vqa/vqav2.*", r"vqav2/test-dev"),),
    "TextVQA": (Part(r"textvqa/.*", r"textvqa/val"),),
    "VizWiz": (Part(r"vizwiz/.*", r"vizwiz/test-dev"),),
    "OKVQA": (Part(r"okvqa/.*", r"okvqa/val"),),
}
SFT: Mapping[str, tuple[Part, ...]] = {
    "VQAv2": (Part(r"vqav2/.*|vqa/vqav2.*", r"vqav2/test-dev"),),
    "TextVQA": (Part(r"textvqa/.*", r"textvqa/val"),),
    "SQA-I": (Part(r"scienceqa-img/.*", r"scienceqa-img/test"),),
    "MMMU": (Part(r"mmmu/val.*", r"mmmu/val"), Part(r"mmmu/test", r"mmmu/test")),
    "MathVista": (Part(r"mathvista/.*", r"mathvista/testmini"),),
    "MME-P": (Part(r"mme", r"mme", "perception"),),
    "MME-C": (Part(r"mme", r"mme", "cognition"),),
    "MMBench": (Part(r"mmbench/.*", r"mmbench/test-circular"),),
    "SEED": (Part(r"seed/all", r"seed/all"), Part(r"seed/image", r"seed/image")),
    "POPE": (Part(r"pope/.*", r"pope/coco"),),
    "LLaVA-W": (Part(r"llava-bench/.*", r"llava-bench/wild"),),
    "MM-Vet": (Part(r"mm-vet", r"mm-vet"),),
}
COLUMNS = {"fewshot": FEWSHOT, "sft": SFT}
TITLES = {
    "fewshot": (
        "COCO, NoCaps, TextCaps: CIDEr; the others: VQA accuracy, %. Published rows: MM1 (arXiv 2403.09611); that they "
        "are of Karpathy's test part of COCO, val of NoCaps and TextCaps, test-dev of VizWiz, and at 0 shots with 2 "
        f"text-only demonstrations, is {UNVERIFIED}."
    ),
    "sft": f"MMMU: val/test. SEED: all/image. Published rows: MM1 (arXiv 2403.09611); MMBench's part is {UNVERIFIED}.",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Args:
        texts: Its numbers as text, a dash for none.
        marks: Why it is not comparable to what is published.
        dropped: Whether demonstrations were dropped.
    """

    texts: tuple[str, ...]
    marks: tuple[str, ...] = ()
    dropped: bool = False

    @property
    def text(self) -> str:
        """As it stands in a table; a cell of dashes is one dash."""
        return "/".join(self.texts) if set(self.texts) - {NONE} else NONE


@dataclass(frozen=True)
class Row:
    """One model at one number of shots.

    Args:
        model: Its name.
        shots: Number of demonstrations.
        cells: By column.
        ours: Whether we measured it.
    """

    model: str
    shots: int
    cells: Mapping[str, Cell]
    ours: bool = False


def layout(
    models: Sequence[tuple[str, Path]],
    kind: Kind = "fewshot",
    published: Literal["all", "mm1", "none"] = "all",
    form: Literal["markdown", "csv"] = "markdown",
) -> str:
    """A table in MM1's layout.

    Args:
        models: Name and path of each of ours: a run folder, the folder of one evaluation, or a ``scores.json``.
        kind: ``fewshot``, or ``sft`` for what is asked after tuning.
        published: Which published rows.
        form: ``markdown`` with marks and footnotes, or ``csv`` with notes in a column.

    Raises:
        UserError: A path without scores, or two evaluations of a model with the same task and shots.
    """
    rows = [row for row in published_rows(kind) if published == "all" or (published, row.model[:3]) == ("mm1", "MM1")]
    rows += [row for name, path in models for row in our_rows(name, path, kind)]
    return _csv(rows, kind) if form == "csv" else _markdown(rows, kind)


def published_rows(kind: Kind) -> list[Row]:
    """Rows as they were published, in the order of the file."""
    with (PUBLISHED / f"{kind}.csv").open(newline="") as file:
        return [
            Row(row["model"], int(row["shots"]), {name: _published(row[name]) for name in COLUMNS[kind]})
            for row in csv.DictReader(file)
        ]


def _published(cell: str) -> Cell:
    texts = tuple(NONE if part in ("", "-") else part for part in cell.removesuffix("?").split("/"))
    return Cell(texts, (UNVERIFIED,) * cell.endswith("?"))


def our_rows(model: str, path: Path, kind: Kind) -> list[Row]:
    """Rows of one model, a row for each number of shots.

    Raises:
        UserError: As :func:`layout`.
    """
    entries: dict[int, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    for file in score_files(path):
        scores = read_scores(file)
        for task, entry in scores["tasks"].items():
            for shots, at in entry["shots"].items():
                found = entries.setdefault(int(shots), {})
                if task in found:
                    raise UserError(
                        f"{path} has {task} at {shots} shots twice, also in {file}; expected one, named as a file"
                    )
                about = {name: entry.get(name) for name in ("n", "metric", "warnings")}
                found[task] = (scores, {**at, **about})
    rows = []
    for shots, found in sorted(entries.items()):
        cells = {name: _cell(parts, found, shots, kind) for name, parts in COLUMNS[kind].items()}
        if any(cell.text != NONE for cell in cells.values()):
            rows.append(Row(model, shots, cells, ours=True))
    return rows


def _cell(parts: Sequence[Part], found: Mapping[str, tuple[Any, Any]], shots: int, kind: Kind) -> Cell:
    texts, marks, dropped = [], dict[str, None](), False
    for part in parts:
        task = _task(part, found)
        if task is None:
            texts.append(NONE)
            continue
        scores, at = found[task]
        value = at.get("also", {}).get("sighted", {}).get(part.also) if part.also else at.get("sighted")
        texts.append(NONE if value is None else number(value))
        marks |= dict.fromkeys(_marks(part, task, scores, at, shots, kind))
        dropped |= bool(at.get("dropped"))
    return Cell(tuple(texts), tuple(marks), dropped)


def _task(part: Part, found: Mapping[str, tuple[Any, Any]]) -> str | None:
    """The task of the published split where it is scored, else the first that has a number, asked as published."""
    fits = [name for name in found if re.fullmatch(part.tasks, name) and found[name][1].get("sighted") is not None]
    fits.sort(key=lambda name: name.endswith(CIRCULAR) != part.published.endswith(CIRCULAR))
    exact = sorted((name for name in fits if name.removesuffix("-ocr") == part.published), key=len)
    return next(iter([*exact, *fits]), None)


def _marks(part: Part, task: str, scores: Any, at: Any, shots: int, kind: Kind) -> Iterator[str]:
    """What was done in another way than for the published number."""
    settings = scores.get("settings") or {}
    if task.removesuffix("-ocr") != part.published:
        yield f"{task}, published is {part.published}"
    if part.published.endswith(CIRCULAR) and not task.endswith(CIRCULAR):
        yield "asked once, published is right in all turns of the choices"
    yield from (f"{task}: {told}" for told in at["warnings"] or () if re.search(PARTIAL, told))
    if at["metric"] in JUDGED and (judge := scores.get("judge")):
        yield f"{task} read by {judge['name']}, published by GPT-4, in other words"
    elif at["metric"] == "mathvista":
        yield f"{task} read by rules, published by a language model"
    if task.endswith("-ocr"):
        yield "OCR tokens stand in the prompt"
    if kind == "fewshot" and shots == 0 and (given := settings.get("text_only_demonstrations", 0)) != 2:
        yield f"0 shots with {given or 'no'} text-only demonstrations, MM1's have 2"
    if (limit := settings.get("limit")) is not None:
        yield f"{limit} questions of a benchmark at most, drawn by the seed"
    if kind == "fewshot" and settings.get("style") == "chat":
        yield "asked as a conversation"
    if kind == "sft" and settings.get("style") == "plain":
        yield "asked without the turns of a conversation"
    if settings.get("choosing") == "likelihood" and at["metric"] in CHOICES:
        yield "the likeliest choice taken, published ones were written"
    if any(isinstance(asked, dict) and asked.get("reasoning") for asked in settings.values()):
        yield "demonstrations reason before they answer"
    if shots and settings.get("demonstrations", "random") == "similar":
        yield "retrieved demonstrations"
    if shots and settings.get("full_resolution_last") is not None:
        yield f"only the last {settings['full_resolution_last']} demonstrations at full resolution"
    if settings.get("mask_experts"):
        yield f"experts masked: {settings['mask_experts']}"
    leaked = ((scores.get("overlap") or {}).get("tasks") or {}).get(task, {})
    if leaked.get("pictures"):
        yield f"{leaked['pictures']} of {at['n']} questions are about pictures that were trained on"


def _markdown(rows: Sequence[Row], kind: Kind) -> str:
    columns = list(COLUMNS[kind])
    notes = list(dict.fromkeys(mark for row in rows if row.ours for c in row.cells.values() for mark in c.marks))
    lines = [_line(["model", "shots", *columns]), _line(["---", *["--:"] * (len(columns) + 1)])]
    before = ""
    for row in rows:
        name = f"**{row.model}**" if row.ours else row.model
        all_unverified = not row.ours and all(UNVERIFIED in c.marks for c in row.cells.values() if c.text != NONE)
        told = f"{row.shots} {UNVERIFIED}" if all_unverified else str(row.shots)
        cells = [_marked(row.cells[column], row.ours, all_unverified, notes) for column in columns]
        lines.append(_line(["" if name == before else name, told, *cells]))
        before = name
    lines += ["", TITLES[kind]]
    lines += [f"<sup>{_letter(at)}</sup> {note}" for at, note in enumerate(notes)]
    if any(cell.dropped for row in rows for cell in row.cells.values()):
        lines.append(f"{DAGGER} some prompts exceeded the context and lost their earliest demonstrations")
    return "\n".join(lines)


def _letter(at: int) -> str:
    return LETTERS[at] if at < len(LETTERS) else f"{LETTERS[at % len(LETTERS)]}{at // len(LETTERS)}"


def _marked(cell: Cell, ours: bool, all_unverified: bool, notes: Sequence[str]) -> str:
    if cell.text == NONE:
        return NONE
    if not ours:
        return cell.text + f" {UNVERIFIED}" * (UNVERIFIED in cell.marks and not all_unverified)
    letters = ",".join(_letter(notes.index(mark)) for mark in cell.marks)
    return cell.text + DAGGER * cell.dropped + f"<sup>{letters}</sup>" * bool(letters)


def _csv(rows: Sequence[Row], kind: Kind) -> str:
    columns, out = list(COLUMNS[kind]), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "shots", *columns, "notes"])
    for row in rows:
        notes: dict[str, list[str]] = {}
        for column, cell in row.cells.items():
            lost = ("demonstrations dropped to fit the context",) * cell.dropped
            for mark in (*cell.marks, *lost) if cell.text != NONE else ():
                notes.setdefault(mark.strip("()"), []).append(column)
        told = "; ".join(f"{mark}: {', '.join(where)}" for mark, where in notes.items())
        writer.writerow([row.model, row.shots, *(row.cells[column].text for column in columns), told])
    return out.getvalue().rstrip("\n")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
