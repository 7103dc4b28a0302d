"""Whether a corpus holds what is scored: pictures, whatever their files are called, and questions, however punctuated.

``mm1-data shards`` leaves scored pictures out. This reads what came of it, picture by picture and text by text, so that
a report can say 0 because it was counted and not because it was meant, and so that scores can be told without what
leaked. Pictures are told by content and by perceptual hash, questions as :mod:`eval.phrases` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.phrases import Phrases, words
from eval.pictures import read
from eval.task import Task
from mm1.batch import ImageSpec
from mm1.data.fingerprint import Fingerprint, Known, fingerprint
from mm1.data.image import decode, field_of, lay_out, scale
from mm1.data.shards import ShardSet, read_manifest
from mm1.errors import UserError
from mm1.sample import Image, Part, Text, Views

AT_ONCE = 256  # pictures held for the threads
SHOWN = 10  # of what was found, as examples


@dataclass(frozen=True, slots=True)
class Leaks:
    """Ids of one task's questions that were trained on.

    Args:
        pictures: Whose picture was.
        questions: Whose words were.
    """

    pictures: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def either(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.pictures, *self.questions))


@dataclass(frozen=True, slots=True)
class Overlap:
    """What training corpora and benchmarks share.

    Args:
        scored: Pictures of the benchmarks that were looked for.
        trained: Pictures of the corpora, equal files counted once.
        found: For each of them that is scored: the document's id, its corpus, stream and split.
        questions_scored: Different questions that were looked for.
        questions: For each that was found: its words, and where it was first.
        tasks: By task, which of its questions leaked.
    """

    scored: int
    trained: int
    found: tuple[str, ...]
    questions_scored: int = 0
    questions: tuple[str, ...] = ()
    tasks: Mapping[str, Leaks] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As ``scores.json`` keeps it."""
        return {
            "pictures": len(self.found),
            "scored": self.scored,
            "trained": self.trained,
            "found": self.found[:SHOWN],
            "questions": len(self.questions),
            "questions_scored": self.questions_scored,
            "questions_found": self.questions[:SHOWN],
            "tasks": {
                name: {"pictures": len(of.pictures), "questions": len(of.questions), "either": len(of.either)}
                for name, of in self.tasks.items()
            },
        }

    def ids(self) -> dict[str, dict[str, list[str]]]:
        """As ``overlap.json`` keeps it, so that answers can be scored again without what leaked."""
        return {
            name: {"pictures": list(of.pictures), "questions": list(of.questions)} for name, of in self.tasks.items()
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self.found)} of {self.trained} pictures to train on are among {self.scored} scored ones"
            + _examples(self.found),
            f"{len(self.questions)} of {self.questions_scored} scored questions stand in texts to train on"
            + _examples(self.questions),
        ]
        lines += [
            f"{name}: {len(of.pictures)} questions with such a picture, {len(of.questions)} with such words"
            for name, of in self.tasks.items()
            if of.either
        ]
        return "\n".join(lines)


def _examples(found: tuple[str, ...]) -> str:
    return f": {', '.join(found[:3])}" * bool(found)


def check_tokenizer(corpora: Iterable[Path], ours: str, checkpoint: Path) -> None:
    """Refuse a corpus that a checkpoint cannot have been trained on.

    Raises:
        UserError: Its tokenizer is another.
    """
    for corpus in corpora:
        theirs = read_manifest(corpus).get("tokenizer", ours)
        if theirs != ours:
            raise UserError(
                f"{corpus} was written with tokenizer {theirs} and {checkpoint} has {ours}; expected a corpus that it "
                f"was trained on (--corpus)"
            )


def overlap(corpora: list[Path], tasks: list[Task], progress: bool = False) -> Overlap:
    """Look for every picture and question of ``tasks`` in every stream and split of corpora.

    Raises:
        UserError: A corpus or a scored picture cannot be read.
    """
    manifests = [read_manifest(corpus) for corpus in corpora]
    paths = list(dict.fromkeys(path for task in tasks for query in task.whole for path in query.pictures))
    phrases = Phrases(query.question for task in tasks for query in task.whole)
    trained = _Trained(corpora, manifests, phrases, progress)
    found: list[str] = []
    leaked: set[Path] = set()
    with ThreadPoolExecutor() as threads:
        looks = list(threads.map(lambda path: _looks(read(path), manifests), paths))
        known = Known(one for some in looks for one in some)
        owner = [path for path, some in zip(paths, looks, strict=True) for _ in some]
        for batch in _batches(trained.pictures()):
            prints = threads.map(lambda entry: fingerprint(entry[1], decode(entry[1])), batch)
            for (where, _), one in zip(batch, prints, strict=True):
                if alike := known.alike(one):
                    found.append(where)
                    leaked |= {owner[at] for at in alike}
    told = tuple(f'"{" ".join(said)}" in {where}' for said, where in trained.said.items())
    by_task = {task.name: _leaks(task, leaked, set(trained.said)) for task in tasks}
    return Overlap(len(paths), len(trained.seen), tuple(found), phrases.count, told, by_task)


def _leaks(task: Task, pictures: set[Path], said: set[tuple[str, ...]]) -> Leaks:
    return Leaks(
        tuple(query.id for query in task.queries if not pictures.isdisjoint(query.pictures)),
        tuple(query.id for query in task.queries if words(query.question) in said),
    )


def _looks(data: bytes, manifests: list[dict[str, Any]]) -> list[Fingerprint]:
    """A scored picture as it is, and as each corpus would hold it: cut to its centre it looks different."""
    picture = decode(data)
    looks = [picture]
    for about in manifests:
        looks.append(scale(picture, about["image_px"], about["resize"], about["interpolation"]))
        views = Views(**about.get("views", {}))
        if views.count > 1:  # also where the whole picture is not among them
            spec = ImageSpec(about["image_px"], 0, resize=about["resize"], interpolation=about["interpolation"])
            laid_out = lay_out(picture, views.rows, views.columns, spec)
            looks.append(field_of(laid_out, Part(0, 0, views.rows, views.columns)))
    return [fingerprint(data, one) for one in looks]


class _Trained:
    """One pass over corpora.

    Args:
        corpora: Their folders.
        manifests: Their manifests.
        phrases: Questions to look for on the way.
        progress: Whether to show it.
    """

    def __init__(self, corpora: list[Path], manifests: list[dict[str, Any]], phrases: Phrases, progress: bool) -> None:
        self._sets = [
            (f"{corpus}/{stream}/{split}", ShardSet(corpus, stream, split))
            for corpus, about in zip(corpora, manifests, strict=True)
            for stream in about["streams"]
            for split in ("train", "val")
        ]
        self._phrases, self._progress = phrases, progress
        self.seen: set[bytes] = set()
        self.said: dict[tuple[str, ...], str] = {}  # questions found, and where first

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Pictures not seen yet, each with where it stands; texts are looked through meanwhile."""
        total = sum(len(shards) for _, shards in self._sets)
        with tqdm(total=total, desc="overlap", unit=" documents", disable=not self._progress) as bar:
            for name, shards in self._sets:
                for at in range(len(shards)):
                    bar.update()
                    if not (self._phrases.count or shards.sizes(at)[1]):
                        continue  # neither words nor pictures to look at
                    sample = shards[at]
                    for item in sample.items:
                        if isinstance(item, Text):
                            for said in self._phrases.within(item.text):
                                self.said.setdefault(said, f"{sample.id} in {name}")
                        elif isinstance(item, Image) and (mark := hashlib.sha256(item.data).digest()) not in self.seen:
                            self.seen.add(mark)
                            yield f"{sample.id} in {name}", item.data


def _batches(entries: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    yield batch
