"""The way of a raw corpus to shards, in five steps.

    1. survey    read every file once: how many documents, and a stamp of what they are; the same stamp, nothing to do
    2. scored    fingerprint the pictures that scores stand on
    3. finish    in many processes: read pictures, leave out scored ones, bring to size, cut to rows, count tokens
    4. write     in the order of the files: a document to the train or the validation split by the hash of its group
    5. manifest  what was written, cut and left out, with reasons and examples

A stream that was finished before a kill is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data_pipelines.cut import Limits
from data_pipelines.finish import Finish, Finished, scored_print
from data_pipelines.sources import Draft, Rejection, Source, scored_pictures, sources
from data_pipelines.workers import ordered
from mm1.data.fingerprint import Known
from mm1.data.shards import DAMAGED, FORMAT, ShardWriter, read_index
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError, at_least
from mm1.runs import read_object, write_json
from mm1.sample import Text

EXAMPLES = 5
SMALLEST_WITH_VALIDATION = 20
RAW = "captions/, interleaved/, text/ or sft/ as docs/data.md lays them out"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of shards; recorded in the manifest.

    Args:
        row_tokens: Positions of a row; no document is longer.
        tokens_per_image: Positions of a picture, as the connector makes them.
        images_per_row: Pictures of a row.
        image_px: Side at which pictures are stored, that of the model.
        resize: ``squash``, ``crop`` or ``pad``, that of the model's image encoder.
        interpolation: ``bicubic`` or ``bilinear``.
        keep_pictures: Store the files as they are; every epoch then pays for resizing.
        captions_per_image: How many captions of a picture become documents.
        also: Streams to write beside the usual ones: ``vqa``, ``fewshot``.
        val_share: Share of each stream's documents held out for validation.
        shard_bytes: Size at which a shard is closed.
    """

    row_tokens: int = 512
    tokens_per_image: int = 16
    images_per_row: int = 16
    image_px: int = 64
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    keep_pictures: bool = False
    captions_per_image: int = 1
    also: tuple[str, ...] = ()
    val_share: float = 0.02
    shard_bytes: int = 256_000_000

    def __post_init__(self) -> None:
        names = ("tokens_per_image", "images_per_row", "image_px", "captions_per_image", "shard_bytes")
        at_least(1, {name: getattr(self, name) for name in names})
        if isqrt(self.tokens_per_image) ** 2 != self.tokens_per_image:
            raise UserError(
                f"tokens_per_image is {self.tokens_per_image}; expected a square such as 16 or 144, as connectors make"
            )
        if self.row_tokens < self.tokens_per_image + 3:
            raise UserError(
                f"row_tokens is {self.row_tokens}; a picture of {self.tokens_per_image} tokens (tokens_per_image) with "
                f"begin, end and a word takes at least {self.tokens_per_image + 3}"
            )
        if not 0 <= self.val_share <= 0.5:
            raise UserError(f"val_share is {self.val_share}; expected a share between 0 and 0.5")


@dataclass
class Survey:
    """What one pass over a stream's files tells.

    Args:
        stamp: A hash of all drafts and of size and date of their pictures.
        documents: Number of drafts.
        threshold: Documents whose group hashes below it are validation.
    """

    stamp: str
    documents: int
    threshold: int


@dataclass
class Tally:
    """What happened to a stream, as the manifest says it."""

    split: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            name: {"documents": 0, "pieces": 0, "cuts": 0, "text_tokens": 0, "images": 0} for name in ("train", "val")
        }
    )
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def wrote(self, split: str, finished: Finished) -> None:
        counts = self.split[split]
        counts["documents"] += 1
        counts["pieces"] += len(finished.pieces)
        counts["cuts"] += len(finished.pieces) - 1
        counts["text_tokens"] += sum(tokens for _, tokens in finished.pieces)
        counts["images"] += sum(sample.images for sample, _ in finished.pieces)

    def drop(self, rejection: Rejection) -> None:
        reason = self.dropped.setdefault(rejection.reason, {"count": 0, "examples": []})
        reason["count"] += 1
        if len(reason["examples"]) < EXAMPLES:
            reason["examples"].append(rejection.id)


def build(data: Path, out: Path, settings: Settings, *, strict: bool = False, workers: int = 1) -> dict[str, Any]:
    """Write the shards of a raw corpus beside the tokenizer in ``out``; returns the manifest.

    Args:
        data: Raw corpus folder.
        out: Corpus folder.
        settings: What the shards hold.
        strict: Stop at the first thing that is broken, instead of counting it.
        workers: Processes; the shards do not depend on it.

    Raises:
        UserError: No raw corpus, no tokenizer, a fault under ``strict``, or nothing left to train on.
    """
    at_least(1, {"workers": workers})
    data, out = Path(data).resolve(), Path(out)
    streams = sources(data, settings.captions_per_image, settings.also)
    if not streams:
        raise UserError(f"{data} holds nothing to train on; expected {RAW}")
    if data == out.resolve():
        raise UserError(f"{out} is the raw corpus itself; expected another folder for the shards")
    tokenizer = Tokenizer(find(out))
    scored = scored_pictures(data)
    about = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, **asdict(settings), "also": [*settings.also]}
    base = _hash([about, strict, [_stat(path) for path in scored]])
    surveys = {name: survey(readers, settings.val_share, base) for name, readers in streams.items()}
    done = _done(out, surveys)
    if set(done) == set(streams) and (out / "manifest.json").exists():
        return read_object(out / "manifest.json", "a manifest")
    return _Build(data, out, settings, strict, workers, tokenizer).run(streams, surveys, done, about, scored)


@dataclass
class _Build:
    data: Path
    out: Path
    settings: Settings
    strict: bool
    workers: int
    tokenizer: Tokenizer

    def run(
        self,
        streams: dict[str, list[Source]],
        surveys: dict[str, Survey],
        done: dict[str, Any],
        about: dict[str, Any],
        scored: list[Path],
    ) -> dict[str, Any]:
        """Write what is not done yet. ``manifest.json`` is there only while the whole corpus is."""
        write_json(self.out / "unfinished.json", {**about, "streams": done})
        (self.out / "manifest.json").unlink(missing_ok=True)
        known, unreadable = self._scored(scored)
        about["scored"] = {"pictures": len(known), "unreadable": unreadable}
        for stream in surveys:
            if stream not in done:
                done[stream] = self._stream(stream, streams[stream], surveys[stream], known)
                write_json(self.out / "unfinished.json", {**about, "streams": done})
        if not any(written["train"]["pieces"] for written in done.values()):
            raise UserError(f"{self.data} leaves nothing to train on; {self.out}/unfinished.json says why, by reason")
        manifest = {**about, "streams": {stream: done[stream] for stream in streams}}
        write_json(self.out / "manifest.json", manifest)
        (self.out / "unfinished.json").unlink()
        return manifest

    def _scored(self, paths: list[Path]) -> tuple[Known, dict[str, Any]]:
        tally, prints = Tally(), []
        work = ordered(scored_print, paths, self.workers)
        for path, found in zip(paths, _progress(work, len(paths), "scored pictures"), strict=True):
            if isinstance(found, Rejection):
                self._drop(tally, Rejection(str(path.relative_to(self.data)), found.reason))
            else:
                prints.append(found)
        return Known(prints), tally.dropped

    def _stream(self, stream: str, readers: list[Source], survey: Survey, known: Known) -> dict[str, Any]:
        settings, tally = self.settings, Tally()
        limits = Limits(settings.row_tokens, settings.images_per_row, settings.tokens_per_image)
        image_px = None if settings.keep_pictures else settings.image_px
        finish = Finish(self.tokenizer, limits, image_px, settings.resize, settings.interpolation, known)
        folder = self.out / stream
        _clear(folder)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ShardWriter(folder, split, shard_bytes=settings.shard_bytes))
                for split in ("train", "val")
            }
            work = ordered(finish, _drafts(readers), self.workers)
            for finished in _progress(work, survey.documents, stream):
                for rejection in finished.rejections:
                    self._drop(tally, rejection)
                if finished.pieces:
                    split = "val" if group_hash(finished.group) < survey.threshold else "train"
                    tally.wrote(split, finished)
                    for sample, text_tokens in finished.pieces:
                        writers[split].write(sample, text_tokens)
        splits = {split: {**tally.split[split], "shards": writers[split].shards} for split in writers}
        return {"stamp": survey.stamp, **splits, "dropped": tally.dropped}

    def _drop(self, tally: Tally, rejection: Rejection) -> None:
        if self.strict and rejection.fault:
            raise UserError(f"{rejection.id}: {rejection.reason}; mend it, or leave --strict out to count and go on")
        tally.drop(rejection)


def survey(readers: list[Source], val_share: float, base: str) -> Survey:
    """One pass over a stream. A stream of 20 documents or more has at least one for validation, if any is asked for."""
    stamp, documents, lowest = hashlib.sha256(base.encode()), 0, 2**64
    for draft in _drafts(readers):
        stamp.update(repr(draft).encode("utf-8", "surrogatepass"))
        documents += 1
        if isinstance(draft, Draft):
            lowest = min(lowest, group_hash(draft.group))
            for item in draft.items:
                if not isinstance(item, Text):
                    stamp.update(_stat(item if isinstance(item, Path) else item.path).encode())  # type: ignore[attr-defined]
    threshold = int(val_share * 2**64)
    if val_share and documents >= SMALLEST_WITH_VALIDATION and lowest < 2**64:
        threshold = max(threshold, lowest + 1)
    return Survey(stamp.hexdigest(), documents, threshold)


def group_hash(group: str) -> int:
    """A number of 64 bits that decides a group's split; the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _drafts(readers: list[Source]) -> Iterator[Draft | Rejection]:
    for reader in readers:
        yield from reader.drafts()


def _done(out: Path, surveys: dict[str, Survey]) -> dict[str, Any]:
    """Streams that an earlier run finished with the same stamp, and whose shards are still there."""
    for name in ("manifest.json", "unfinished.json"):
        if (out / name).exists():
            written = read_object(out / name, f"what mm1-data shards wrote; {DAMAGED}").get("streams", {})
            return {
                stream: written[stream]
                for stream, found in surveys.items()
                if written.get(stream, {}).get("stamp") == found.stamp and _whole(out / stream, written[stream])
            }
    return {}


def _whole(folder: Path, written: dict[str, Any]) -> bool:
    try:
        for shard in (shard for split in ("train", "val") for shard in written[split]["shards"]):
            read_index(folder / shard["file"], shard)
    except UserError:
        return False
    return True


def _clear(folder: Path) -> None:
    for path in folder.glob("*") if folder.is_dir() else ():
        if re.fullmatch(r"(train|val)-\d{6}\.(tar|tar\.tmp|index\.json|index\.json\.tmp)", path.name):
            path.unlink()


def _stat(path: Path) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return f"{path} missing"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _progress(values: Iterator[Any], total: int, what: str) -> Iterator[Any]:
    return iter(tqdm(values, total=total, desc=what, mininterval=1.0, unit=" documents"))
