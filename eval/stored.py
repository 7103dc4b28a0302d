"""Commands of ``mm1-eval`` that need no model: benchmarks, explanations, results files, tables, METEOR and SPICE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from eval.explain import explain
from eval.files import Data
from eval.layout import Kind, layout
from eval.metrics.java import Java, java_score
from eval.prompts import Arm
from eval.results import grade, submission
from eval.scores import table
from eval.store import Answer, answers_file, check_metrics, read_answers
from eval.task import offers
from mm1.errors import UserError
from mm1.runs import score_files


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    explaining = ArgumentParser(description="How one answer got its score: prompt, pictures, every step of the metric.")
    explaining.add_argument("answers", type=str, help="an answers.jsonl, or its folder")
    explaining.add_argument("id", type=str, help="of the question")
    explaining.add_argument("--task", type=str | None, default=None, help="where two benchmarks have this id")
    explaining.add_argument("--shots", type=int | None, default=None, help="default: all that were asked")
    explaining.add_argument("--arm", type=Arm, default="sighted")
    handing = ArgumentParser(description="Write answers as the results file that a benchmark's server wants.")
    handing.add_argument("answers", type=str, help="an answers.jsonl, or its folder")
    handing.add_argument("--task", type=str, required=True, help="such as vqav2/test-dev")
    handing.add_argument("--shots", type=int | None, default=None, help="where several were asked")
    handing.add_argument("--out", type=str, required=True, help="the file to write")
    grading = ArgumentParser(description="Score a results file, whoever made it; pictures need not be there.")
    grading.add_argument("results", type=str, help='such as [{"question_id": 1, "answer": "red"}]')
    grading.add_argument("--task", type=str, required=True, help="such as vqav2/val")
    listing = ArgumentParser(description="Name the benchmarks of a data folder, without reading them.")
    for command in (handing, grading, listing):
        command.add_argument("--data", type=str, required=True, help="folder with the benchmark as downloaded")
    laying = ArgumentParser(description="MM1's own tables: published rows beside ours, what is not comparable marked.")
    laying.add_argument(
        "models",
        type=str,
        nargs=argparse.ZERO_OR_MORE,
        help="NAME=PATH or PATH: a run folder, an evaluation's, a scores.json",
    )
    laying.add_argument("--kind", type=Kind, default="fewshot", help="fewshot, or sft for a tuned model")
    laying.add_argument("--published", type=Literal["all", "mm1", "none"], default="all")
    laying.add_argument("--form", type=Literal["markdown", "csv"] | None, default=None, help="default: by --out's name")
    laying.add_argument("--out", type=str | None, default=None, help="the file to write; printed if not given")
    commands.add_subcommand("table", laying, help="MM1's tables with ours beside")
    commands.add_subcommand("tasks", listing, help="the benchmarks of a data folder")
    commands.add_subcommand("explain", explaining, help="how one answer got its score")
    commands.add_subcommand("submission", handing, help="a results file for an evaluation server")
    commands.add_subcommand("grade", grading, help="score a results file")


def in_java(found: dict[str, Any], answers: Sequence[Answer], names: Sequence[Java]) -> None:
    """Add METEOR or SPICE of every captioning task and arm to what :func:`eval.again.rescore` found."""
    for task, entry in found.items():
        for shots, at in entry["shots"].items() if entry["metric"] == "cider" and names else ():
            for arm in ("sighted", "blind", "blank"):
                place = (task, int(shots), arm)
                mine = [answer for answer in answers if (answer["task"], answer["shots"], answer["arm"]) == place]
                if mine:
                    said = {f"{answer['id']}/{answer.get('seed', 0)}": answer["answer"] for answer in mine}
                    right = {f"{answer['id']}/{answer.get('seed', 0)}": answer["references"] for answer in mine}
                    more = {name.upper(): java_score(name, said, right) for name in names}
                    at.setdefault("also", {}).setdefault(arm, {}).update(more)


def _explain(arguments: Namespace) -> None:
    print(explain(_read(arguments.answers), arguments.id, arguments.task, arguments.shots, arguments.arm))


def _submission(arguments: Namespace) -> None:
    _apart(Path(arguments.out), [answers_file(Path(arguments.answers))])
    rows, empty = submission(_read(arguments.answers), Data(Path(arguments.data)), arguments.task, arguments.shots)
    Path(arguments.out).write_text(json.dumps(rows, ensure_ascii=False))
    told = f", {empty} of them empty: the server wants every question of the test part" if empty else ""
    print(f"{arguments.out}: {len(rows)} answers{told}")


def _grade(arguments: Namespace) -> None:
    print(
        table({"tasks": {arguments.task: grade(Path(arguments.results), Data(Path(arguments.data)), arguments.task)}})
    )


def _table(arguments: Namespace) -> None:
    named = [given.rpartition("=") for given in arguments.models]
    models = [(name or _run_name(Path(path)), Path(path)) for name, _, path in named]
    out = Path(arguments.out) if arguments.out else None
    form: Literal["markdown", "csv"] = arguments.form or ("csv" if out and out.suffix == ".csv" else "markdown")
    if out is not None:
        _apart(out, [file for _, path in models for file in score_files(path)])
    text = layout(models, arguments.kind, arguments.published, form)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n")
        print(out)


def _apart(out: Path, read: Sequence[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        UserError: The two are one file.
    """
    if out.exists() and any(file.exists() and out.samefile(file) for file in read):
        raise UserError(f"{out} is what is read here; expected another file to write (--out)")


def _run_name(path: Path) -> str:
    """The run folder's name, whatever of it was given."""
    folder = (path.parent if path.is_file() else path).resolve()
    return folder.parent.parent.name if folder.parent.name == "eval" else folder.name


def _tasks(arguments: Namespace) -> None:
    print("\n".join(offer.name for offer in offers(Data(Path(arguments.data)))))


def _read(path: str) -> list[Answer]:
    answers = read_answers(answers_file(Path(path)))
    check_metrics(answers, answers_file(Path(path)))
    return answers


DOES: dict[str, Callable[[Namespace], None]] = {
    "tasks": _tasks,
    "explain": _explain,
    "submission": _submission,
    "grade": _grade,
    "table": _table,
}
