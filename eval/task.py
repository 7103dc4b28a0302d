"""What a benchmark is: questions about pictures, reference answers, a metric, and a pool of demonstrations."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eval.metrics.cider import Cider
from eval.metrics.vqa import accuracy
from mm1.errors import UserError
from mm1.runs import read_json

Kind = Literal["captions", "vqa", "icl"]
ID = (int, str)  # types of an id


@dataclass(frozen=True, slots=True)
class Query:
    """One question about one picture, or one picture to caption; also a demonstration, which shows its answer.

    Args:
        id: Unique within its task; demonstrations are a function of it.
        picture: The picture asked about.
        question: The question, empty for a caption.
        references: What people answered.
        answer: What a demonstration shows.
        context: Text and pictures before the picture asked about, where the question needs them.
        choices: The only possible answers, where there are such; the likeliest is taken.
    """

    id: str
    picture: Path
    question: str
    references: tuple[str, ...]
    answer: str
    context: tuple[str | Path, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[Path]:
        """Every picture, the one asked about last."""
        return [*(item for item in self.context if isinstance(item, Path)), self.picture]


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        name: Its key in ``scores.json``: ``captions/<file>``, ``vqa/<folder>`` or ``icl``.
        kind: Which prompt of the settings it is asked with.
        queries: What is scored.
        train: Where demonstrations, question-only and constant answers come from; empty: from the questions
            themselves, leaving out the picture asked about.
        warnings: What a reader of its scores must know.
        everything: All questions, where ``queries`` are only some of them.
    """

    name: str
    kind: Kind
    queries: tuple[Query, ...]
    train: tuple[Query, ...] = ()
    warnings: tuple[str, ...] = ()
    everything: tuple[Query, ...] = ()

    @property
    def whole(self) -> tuple[Query, ...]:
        """All questions, also those a limit left out: a limit changes nobody's demonstrations."""
        return self.everything or self.queries

    @property
    def metric(self) -> Literal["cider", "vqa_accuracy"]:
        """The metric's name in ``scores.json``."""
        return "cider" if self.kind == "captions" else "vqa_accuracy"

    def scorer(self) -> Scorer:
        """Scores answers to this task's queries."""
        return Scorer(self.metric, [(query.id, query.references) for query in self.queries])

    def limited(self, limit: int | None, seed: int) -> Task:
        """The first ``limit`` questions in an order decided by the seed and each question's id alone."""
        if limit is None or limit >= len(self.queries):
            return self
        order = sorted(self.queries, key=lambda query: random.Random(f"{seed}/{query.id}").random())
        chosen = {query.id for query in order[:limit]}
        queries = tuple(query for query in self.queries if query.id in chosen)
        return replace(self, queries=queries, everything=self.whole)


class Scorer:
    """The score of an answer, in percent, or CIDEr x 100.

    Args:
        metric: ``cider`` or ``vqa_accuracy``.
        references: The id and the references of every query scored: CIDEr's weights come from all of them.
    """

    def __init__(self, metric: str, references: Iterable[tuple[str, Sequence[str]]]) -> None:
        self._references = dict(references)
        self._cider = Cider(list(self._references.values())) if metric == "cider" else None
        self._index = {id: index for index, id in enumerate(self._references)}
        self.warnings = [self._cider.warning] if self._cider else []

    def __call__(self, id: str, answer: str) -> float:
        """Score of an answer to the query ``id``."""
        if self._cider:
            return self._cider.score(self._index[id], answer)
        return accuracy(answer, self._references[id])


def discover(data: str | Path) -> list[Task]:
    """Every benchmark in a folder laid out as docs/data.md says, by name.

    Raises:
        UserError: No folder, nothing to score in it, or a file of the wrong shape.
    """
    data = Path(data)
    if not data.is_dir():
        raise UserError(f"{data} is no folder; expected a data folder with captions_eval/, vqa/ or icl/ (--data)")
    modules = pkgutil.iter_modules(importlib.import_module("eval.tasks").__path__, "eval.tasks.")
    tasks = [task for module in modules for task in importlib.import_module(module.name).find(data)]
    if empty := [task.name for task in tasks if not task.queries]:
        raise UserError(f"{data} holds {empty[0]} without a single question; expected some, or no such file")
    if not tasks:
        raise UserError(f"{data} holds no benchmark; expected captions_eval/*.json, vqa/<name>/ or icl/test.jsonl")
    return sorted(tasks, key=lambda task: task.name)


def rows(path: Path, key: str | None, fields: Mapping[str, type | tuple[type, ...]]) -> Iterator[Mapping[str, Any]]:
    """Objects of a JSON or JSONL file that all have ``fields``.

    Args:
        path: The file; ``*.jsonl`` holds one object a line.
        key: Where the list of objects stands in a JSON file.
        fields: Names every object must have, with the types they may be of.

    Raises:
        UserError: The file is missing, is no JSON, or an object lacks a field or has another type there.
    """
    expected = f"a list of objects with {', '.join(fields)}"
    if path.suffix == ".jsonl":
        found: Any = _lines(path, expected)
    else:
        found = read_json(path, f"an object whose {key} are {expected}")
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path} has no list named {key}; expected {key}: {expected}")
    for number, row in enumerate(found, start=1):
        lacking = [field for field in fields if field not in row] if isinstance(row, dict) else list(fields)
        if lacking:
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}: entry {number} has {has}; expected also {', '.join(lacking)}")
        for field, kind in fields.items():
            if not isinstance(row[field], kind):
                kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
                raise UserError(f"{path}: entry {number} has {field} = {row[field]!r:.60}; expected {kinds}")
        yield row


def strings(values: Any, path: Path, where: str) -> tuple[str, ...]:
    """A list of texts, such as reference answers.

    Raises:
        UserError: It is none, or empty.
    """
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{path}: {where} has {values!r:.60}; expected a list of texts")
    return tuple(values)


def check_ids(queries: Iterable[Query], path: Path) -> None:
    """Refuse queries that share an id: they would share their demonstrations and their answer.

    Raises:
        UserError: The id.
    """
    for id, count in Counter(query.id for query in queries).items():
        if count > 1:
            raise UserError(f"{path} has id {id} on {count} questions; expected every id once")


def _lines(path: Path, expected: str) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected {expected}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON lines ({error}); expected {expected}") from None
