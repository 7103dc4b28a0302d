"""What a benchmark is: questions about pictures, reference answers, a metric, and a pool of demonstrations."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from eval.files import Data
from eval.metrics.choice import LETTERS
from eval.metrics.metric import Gold, Metric, metric_class
from mm1.errors import UserError

Kind = Literal["captions", "vqa", "choices", "open", "icl"]


@dataclass(frozen=True, slots=True)
class Query:
    """One question about pictures, or one picture to caption; also a demonstration, which shows its answer.

    Args:
        id: Unique within its task; demonstrations are a function of it.
        picture: The picture asked about, the first of them.
        question: The question, empty for a caption.
        references: What people answered; empty where nobody says.
        answer: What a demonstration shows.
        context: Text and pictures before the picture asked about, where the question needs them.
        choices: The only possible answers, where there are such.
        others: Further pictures asked about, after ``picture``.
        inline: Whether ``<image 1>``, ``<image 2>``, .. in the question stand for ``picture`` and ``others``. Pictures
            that are not named so stand where the prompt has its picture.
        groups: Names of sub-scores that it counts in, such as a domain or a category.
        versions: Other references, by the name of the field they stand in.
        about: All else that its file says and a metric or a submission needs, plain values.
        kind: Which prompt of the settings it is asked with, where that is not its task's.
    """

    id: str
    picture: Path
    question: str
    references: tuple[str, ...]
    answer: str
    context: tuple[str | Path, ...] = ()
    choices: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()
    inline: bool = False
    groups: tuple[str, ...] = ()
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind | None = None

    @property
    def shown(self) -> list[Path]:
        """The pictures asked about."""
        return [self.picture, *self.others]

    @property
    def pictures(self) -> list[Path]:
        """Every picture, those asked about last."""
        return [*(item for item in self.context if isinstance(item, Path)), *self.shown]

    @property
    def gold(self) -> Gold:
        """What a metric knows of it."""
        of = (self.choices, self.groups, self.versions, self.about)
        return Gold(self.id, self.references, self.question, str(self.picture), *of)


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        name: Its key in ``scores.json``, such as ``vqav2/val``, ``captions/<file>`` or ``icl``.
        kind: Which prompt of the settings it is asked with.
        queries: What is scored.
        train: Where demonstrations, question-only and constant answers come from; empty: from the questions
            themselves, leaving out the picture asked about.
        warnings: What a reader of its scores must know.
        everything: All questions, where ``queries`` are only some of them.
        metric: Name or import path of its metric; default: CIDEr of captions, VQA accuracy of all else.
        choosing: How one of the choices is taken: the ``likelihood`` of each as an answer, or ``letter``: choices stand
            in the question as A, B, C and a written answer is read for its letter.
        answer_field: What an answer is called in the results file of this benchmark.
        sources: What its files are: name, version and the start of their SHA-256.
        submitted_as: The benchmark whose questions a results file must all answer, where that is another.
        texts: All of the train part where ``train`` lacks what has no picture: who does not look needs none.
    """

    name: str
    kind: Kind
    queries: tuple[Query, ...]
    train: tuple[Query, ...] = ()
    warnings: tuple[str, ...] = ()
    everything: tuple[Query, ...] = ()
    metric: str = ""
    choosing: Literal["likelihood", "letter"] = "likelihood"
    answer_field: str = "answer"
    sources: tuple[Mapping[str, str], ...] = ()
    submitted_as: str = ""
    texts: tuple[Query, ...] = ()

    def __post_init__(self) -> None:
        if not self.metric:
            object.__setattr__(self, "metric", self.usual_metric)

    @property
    def usual_metric(self) -> str:
        """The metric of a task that names none."""
        return "cider" if self.kind == "captions" else "vqa_accuracy"

    @property
    def whole(self) -> tuple[Query, ...]:
        """All questions, also those a limit left out: a limit changes nobody's demonstrations."""
        return self.everything or self.queries

    def scorer(self) -> Metric:
        """Scores answers to this task's queries."""
        return metric_class(self.metric)([query.gold for query in self.queries])

    def asked(self, query: Query) -> Query:
        """A question as it is put: with its choices below it and a letter for an answer, where letters are chosen."""
        if self.choosing == "likelihood" or not query.choices:
            return query
        letters = dict(zip(query.choices, LETTERS, strict=False))
        answer = str(query.about.get("letter") or letters.get(query.answer, query.answer))  # two choices may read alike
        return replace(query, question=lettered(query.question, query.choices), choices=(), answer=answer)

    def limited(self, limit: int | None, seed: int) -> Task:
        """The first ``limit`` questions in an order decided by the seed and each question's id alone."""
        if limit is None or limit >= len(self.queries):
            return self
        order = sorted(self.queries, key=lambda query: random.Random(f"{seed}/{query.id}").random())
        chosen = {query.id for query in order[:limit]}
        queries = tuple(query for query in self.queries if query.id in chosen)
        return replace(self, queries=queries, everything=self.whole)

    def fingerprint(self) -> str:
        """A name for all of it: another question, picture or reference, another name."""
        mark = hashlib.sha256(repr((self.name, self.kind, self.metric, self.choosing, self.sources)).encode())
        for part in (self.queries, self.train, self.everything):
            mark.update(str(len(part)).encode())
            for query in part:
                mark.update(repr(query).encode())
        return mark.hexdigest()[:16]


@dataclass(frozen=True)
class Offer:
    """A benchmark that a data folder holds, not read yet.

    Args:
        name: That of its task.
        load: Reads it.
    """

    name: str
    load: Callable[[], Task]


def offers(data: Data) -> list[Offer]:
    """Every benchmark of a folder, by name, without reading it.

    Raises:
        UserError: No folder, or nothing to score in it.
    """
    if not data.folder.is_dir():
        raise UserError(
            f"{data.folder} is no folder; expected a data folder with benchmarks (--data, docs/evaluation.md)"
        )
    modules = pkgutil.iter_modules(importlib.import_module("eval.tasks").__path__, "eval.tasks.")
    found = [importlib.import_module(module.name) for module in modules]
    offered = [offer for module in found if hasattr(module, "find") for offer in module.find(data)]
    if not offered:
        raise UserError(
            f"{data.folder} holds no benchmark; expected annotation files under their original names "
            f"(docs/evaluation.md), captions_eval/*.json, vqa/<name>/ or icl/test.jsonl"
        )
    return sorted(offered, key=lambda offer: offer.name)


def discover(data: str | Path | Data, only: Collection[str] = (), pictures: bool = True) -> list[Task]:
    """The benchmarks of a folder, by name.

    Args:
        data: The folder: files under their original names, or laid out as docs/data.md says.
        only: Names of those wanted; all if empty.
        pictures: Whether pictures must be there.

    Raises:
        UserError: No folder, nothing to score in it, no such benchmark, or a file of the wrong shape.
    """
    data = data if isinstance(data, Data) else Data(Path(data))
    offered = offers(data)
    if unknown := set(only) - {offer.name for offer in offered}:
        there = ", ".join(offer.name for offer in offered)
        raise UserError(f"tasks names {min(unknown)}, which {data.folder} does not hold; expected some of {there}")
    tasks = [offer.load() for offer in offered if not only or offer.name in only]
    if empty := [task.name for task in tasks if not task.queries]:
        raise UserError(f"{data.folder} holds {empty[0]} without a single question; expected some, or no such file")
    return [present(task, data) for task in tasks] if pictures else tasks


def present(task: Task, data: Data) -> Task:
    """The task without questions and demonstrations whose pictures are missing; their number is a warning of it.

    Raises:
        UserError: More questions lack their picture than ``data`` allows.
    """
    known: dict[Path, bool] = {}

    def there(query: Query) -> bool:
        return all(known[path] if path in known else known.setdefault(path, path.is_file()) for path in query.pictures)

    queries = tuple(query for query in task.queries if there(query))
    train = tuple(query for query in task.train if there(query))
    lost = len(task.queries) - len(queries)
    if lost > data.max_missing_share * len(task.queries):
        first = next(path for query in task.queries for path in query.pictures if not known.get(path, True))
        raise UserError(
            f"{task.name}: {lost} of {len(task.queries)} questions are about pictures that do not exist, the first is "
            f"{first}; expected all in place (images says where), or at most max_missing_share = "
            f"{data.max_missing_share:g} of them missing"
        )
    if not queries:
        raise UserError(
            f"{task.name}: no picture of its {len(task.queries)} questions exists; expected some (images says where)"
        )
    told = [f"{lost} of {len(task.queries)} questions left out, their pictures are missing"] * bool(lost)
    if task.train and not train:
        told.append("no picture of the train part is there: demonstrations are scored questions, the query excluded")
    elif absent := len(task.train) - len(train):
        told.append(f"{absent} of {len(task.train)} demonstrations left out, their pictures are missing")
    if not told:
        return task
    return replace(task, queries=queries, train=train, texts=task.train, warnings=(*task.warnings, *told))


def lettered(question: str, choices: Sequence[str]) -> str:
    """A question with its choices below it, a letter each."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def source(path: Path, version: str = "") -> dict[str, str]:
    """What tells a file of a benchmark from another of the same name."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"file": path.name, "sha256": digest.hexdigest()[:16], **({"version": version} if version else {})}
