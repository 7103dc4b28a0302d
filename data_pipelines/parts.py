"""Parts: the unit of work. A stretch of one raw file goes through the steps and into shards of its own.

A part needs nothing of any other, so processes and machines share them out as they like, the shards are the same for
all of them, and a run that was killed goes on after the last part that is on disk. Only what compares documents
(:mod:`data_pipelines.alike`) needs a look at all parts first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy

from data_pipelines.finish import Finish, Finished
from data_pipelines.places import Remote, local
from data_pipelines.sources.base import WHOLE, Draft, Packed, Place, Rejection, Source, Span
from data_pipelines.steps import Pictures, Step, without
from mm1.data.image import PictureError
from mm1.data.shards import ShardWriter, read_index
from mm1.errors import UserError
from mm1.runs import read_object, write_json

EXAMPLES = 5
SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a file.

    Args:
        stream: Where its documents go.
        number: Its place among the parts of the stream.
        source: What reads it.
        file: The file, here or elsewhere.
        span: The stretch.
        folder: What ids begin with, where another file of the stream has the same name.
    """

    stream: str
    number: int
    source: Source = field(repr=False)
    file: Path | Remote
    span: Span
    folder: str = ""

    def drafts(self) -> Iterator[Draft | Rejection]:
        """Its documents."""
        for draft in self.source.drafts_in(local(self.file), self.span):
            named = replace(draft, id=f"{self.folder}{draft.id}") if self.folder else draft
            yield replace(named, source=self.stream) if isinstance(named, Draft) else named


def parts_of(stream: str, sources: list[Source], rows: int) -> list[Part]:
    """The parts of a stream in order, of about ``rows`` rows each; a file that is elsewhere is one part."""
    named = Counter(_stem(file) for source in sources for file in source.files())
    places = [
        (source, file, span)
        for source in sources
        for file in source.files()
        for span in (source.spans(file, rows) if isinstance(file, Path) else [WHOLE])
    ]
    return [
        Part(stream, number, source, file, span, _folder(file) if named[_stem(file)] > 1 else "")
        for number, (source, file, span) in enumerate(places)
    ]


def _stem(file: Path | Remote) -> str:
    return file.name.partition(".")[0]


def _folder(file: Path | Remote) -> str:
    """The folder of a file as a short prefix that no other folder has: its name, and a hash of all before."""
    folder = str(file.parent) if isinstance(file, Path) else file.address.rpartition("/")[0]
    return f"{folder.rpartition('/')[2]}-{hashlib.sha256(folder.encode()).hexdigest()[:6]}/"


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at a part tells.

    Args:
        stamp: A hash of all its drafts and of size and date of their pictures.
        documents: Number of drafts.
        lowest: The lowest group hash.
    """

    stamp: str
    documents: int
    lowest: int


def survey(part: Part) -> Survey:
    """Count a part's documents and take their stamp, without reading a picture."""
    stamp, documents, lowest = hashlib.sha256(), 0, 2**64
    for draft in part.drafts():
        stamp.update(repr(draft).encode("utf-8", "surrogatepass"))
        documents += 1
        if isinstance(draft, Draft):
            lowest = min(lowest, group_hash(draft.group))
            for place in draft.pictures:
                file = place.path if isinstance(place, Packed) else place
                stamp.update(stat(file).encode() if isinstance(file, Path) else repr(file).encode())
    return Survey(stamp.hexdigest(), documents, lowest)


def group_hash(group: str) -> int:
    """A number of 64 bits that decides a group's split; the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def stat(path: Path) -> str:
    """Size and date of a file, to see that it changed."""
    try:
        found = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


@dataclass
class Tally:
    """What happened to documents, as the manifest says it."""

    split: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            name: {"documents": 0, "pieces": 0, "cuts": 0, "text_tokens": 0, "images": 0} for name in SPLITS
        }
    )
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def wrote(self, split: str, finished: Finished) -> None:
        """Count a document that is in the shards."""
        counts = self.split[split]
        counts["documents"] += 1
        counts["pieces"] += len(finished.pieces)
        counts["cuts"] += len(finished.pieces) - 1
        counts["text_tokens"] += sum(tokens for _, tokens in finished.pieces)
        counts["images"] += sum(sample.images for sample, _ in finished.pieces)

    def drop(self, rejection: Rejection) -> None:
        """Count what is not."""
        reason = self.dropped.setdefault(rejection.reason, {"count": 0, "examples": []})
        reason["count"] += 1
        if len(reason["examples"]) < EXAMPLES:
            reason["examples"].append(rejection.id)

    def add(self, other: dict[str, Any]) -> None:
        """Add what :meth:`value` gave for another part."""
        for split, counts in other["split"].items():
            for name, count in counts.items():
                self.split[split][name] += count
        for reason, found in other["dropped"].items():
            mine = self.dropped.setdefault(reason, {"count": 0, "examples": []})
            mine["count"] += found["count"]
            mine["examples"] = (mine["examples"] + found["examples"])[:EXAMPLES]
        for number, step in enumerate(other["steps"]):
            if number == len(self.steps):
                self.steps.append({**step, "in": 0, "out": 0})
            self.steps[number]["in"] += step["in"]
            self.steps[number]["out"] += step["out"]

    def value(self) -> dict[str, Any]:
        """All of it, plain."""
        return {"split": self.split, "dropped": self.dropped, "steps": self.steps}


@dataclass(frozen=True)
class Walk:
    """A part's documents on their way through steps, with what each step let through.

    Args:
        steps: In order.
        lost: For each step and part, the numbers of documents that were found to be like an earlier one.
    """

    steps: tuple[Step, ...]
    lost: dict[tuple[int, str, int], numpy.ndarray] = field(default_factory=dict)

    def documents(
        self, part: Part, tally: Tally, *, strict: bool = False
    ) -> Iterator[tuple[int, Draft | Rejection, Pictures]]:
        """Number, document and pictures; a rejection for what did not get through, so that all are counted.

        Raises:
            UserError: A fault under ``strict``.
        """
        tally.steps = [{"step": type(step).__name__, "in": 0, "out": 0} for step in self.steps]
        lost = [set(self.lost.get((n, part.stream, part.number), ())) for n in range(len(self.steps))]
        for number, draft in enumerate(part.drafts()):
            pictures = Pictures()
            for at, step in enumerate(self.steps):
                if isinstance(draft, Rejection):
                    break
                tally.steps[at]["in"] += 1
                draft = like_another(step, draft) if number in lost[at] else taken(step, draft, pictures)
                tally.steps[at]["out"] += isinstance(draft, Draft)
            if strict and isinstance(draft, Rejection) and draft.fault:
                raise fault(draft)
            yield number, draft, pictures


def like_another(step: Step, draft: Draft) -> Rejection:
    """That a step which compares documents found an earlier one like it."""
    return Rejection(draft.id, f"like an earlier document ({type(step).__name__})", fault=False)


def taken(step: Step, draft: Draft, pictures: Pictures) -> Draft | Rejection:
    """What a step says; where it meets a picture that cannot be read, what it says of the document without that one."""
    try:
        return step(draft, pictures)
    except PictureError as error:
        rest = without(draft, unreadable(draft, pictures), str(error), fault=True)
        return step(rest, pictures) if isinstance(rest, Draft) else rest


def unreadable(draft: Draft, pictures: Pictures) -> list[Place]:
    """The pictures of a document that cannot be read."""
    found = []
    for place in draft.pictures:
        try:
            pictures.pixels(place)
        except PictureError:
            found.append(place)
    return found


def fault(rejection: Rejection) -> UserError:
    """What ``--strict`` says."""
    return UserError(f"{rejection.id}: {rejection.reason}; mend it, or leave --strict out to count and go on")


@dataclass(frozen=True)
class Job:
    """All that writing a part depends on, to be copied to every worker.

    Args:
        out: Corpus folder.
        walk: The steps.
        finish: What brings documents to the form of shards.
        thresholds: By stream: documents whose group hashes below it are validation.
        stamps: By stream and part: what the part's shards were made of; the same stamp, nothing to do.
        shard_bytes: Size at which a shard is closed.
        strict: Whether a fault ends the run.
    """

    out: Path
    walk: Walk
    finish: Finish
    thresholds: dict[str, int]
    stamps: dict[tuple[str, int], str]
    shard_bytes: int
    strict: bool

    def __call__(self, part: Part) -> dict[str, Any]:
        """Write a part's shards, unless they are there; returns what ``parts/`` keeps of it."""
        folder, stamp = self.out / part.stream, self.stamps[part.stream, part.number]
        if done := finished(folder, part.number, stamp):
            return done
        note(folder, part.number).unlink(missing_ok=True)
        clear(folder, part.number)
        tally = Tally()
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ShardWriter(folder, split, part=part.number, shard_bytes=self.shard_bytes))
                for split in SPLITS
            }
            for _, draft, pictures in self.walk.documents(part, tally, strict=self.strict):
                self._write(self.finish(draft, pictures), writers, tally, part.stream)
        shards = {split: writer.shards for split, writer in writers.items()}
        written = {"stamp": stamp, **tally.value(), "shards": shards}
        note(folder, part.number).parent.mkdir(parents=True, exist_ok=True)
        write_json(note(folder, part.number), written)
        return written

    def _write(self, done: Finished, writers: dict[str, ShardWriter], tally: Tally, stream: str) -> None:
        for rejection in done.rejections:
            if self.strict and rejection.fault:
                raise fault(rejection)
            tally.drop(rejection)
        if done.pieces:
            split = "val" if group_hash(done.group) < self.thresholds[stream] else "train"
            tally.wrote(split, done)
            for sample, text_tokens in done.pieces:
                writers[split].write(sample, text_tokens)


def note(folder: Path, number: int) -> Path:
    """The file that says a part is done."""
    return folder / "parts" / f"{number:06d}.json"


def finished(folder: Path, number: int, stamp: str | None = None) -> dict[str, Any] | None:
    """What was written of a part, if it is that part (any, where no stamp is given) and its shards are whole."""
    try:
        found = read_object(note(folder, number), "a finished part")
        shards = [shard for split in SPLITS for shard in found["shards"][split]]
        if stamp not in (None, found["stamp"]):
            return None
        for shard in shards:
            read_index(folder / shard["file"], shard)
    except (UserError, KeyError, TypeError):
        return None
    return found


def clear(folder: Path, number: int | None = None, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Delete what an earlier or an unfinished run left of a part, or of all."""
    name = "*" if number is None else f"{number:06d}*"
    for split in SPLITS:
        for path in folder.glob(f"{split}-{name}"):
            if path.suffix in (".tar", ".npz", ".json", ".tmp") and not keep(path):
                path.unlink()
