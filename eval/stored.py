"""Commands of ``mm1-eval`` that need no model: explain a score, write and grade results files, METEOR and SPICE."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from eval.explain import explain
from eval.files import Data
from eval.metrics.java import Java, java_score
from eval.prompts import Arm
from eval.results import grade, submission
from eval.scores import table
from eval.store import Answer, read_answers


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
    for command in (handing, grading):
        command.add_argument("--data", type=str, required=True, help="folder with the benchmark as downloaded")
    commands.add_subcommand("explain", explaining, help="how one answer got its score")
    commands.add_subcommand("submission", handing, help="a results file for an evaluation server")
    commands.add_subcommand("grade", grading, help="score a results file")


def in_java(found: dict[str, Any], answers: Sequence[Answer], names: Sequence[Java]) -> None:
    """Add METEOR or SPICE of every captioning task and arm to what :func:`eval.scores.rescore` found."""
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
    rows, empty = submission(_read(arguments.answers), Data(Path(arguments.data)), arguments.task, arguments.shots)
    Path(arguments.out).write_text(json.dumps(rows, ensure_ascii=False))
    told = f", {empty} of them empty: the server wants every question of the test part" if empty else ""
    print(f"{arguments.out}: {len(rows)} answers{told}")


def _grade(arguments: Namespace) -> None:
    print(
        table({"tasks": {arguments.task: grade(Path(arguments.results), Data(Path(arguments.data)), arguments.task)}})
    )


def _read(path: str) -> list[Answer]:
    return read_answers(Path(path) / "answers.jsonl" if Path(path).is_dir() else Path(path))


DOES: dict[str, Callable[[Namespace], None]] = {"explain": _explain, "submission": _submission, "grade": _grade}
