"""The way of raw files to shards, in five steps.

    1. survey    look at every part once: how many documents, and a stamp of them; the same stamp, nothing to do
    2. scored    fingerprint the pictures that scores stand on
    3. alike     where a step compares documents: keys of all parts into buckets, and who is lost
    4. write     every part through the steps and into shards of its own (:mod:`data_pipelines.parts`)
    5. manifest  what was written, cut and left out, with reasons and examples

A part that was finished before a kill is not done again. A document goes to the train or the validation split by the
hash of its group.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from tqdm import tqdm

from data_pipelines.alike import Keys, Losers, by_part
from data_pipelines.cut import Limits
from data_pipelines.engines import Engine, Local
from data_pipelines.finish import Finish, scored_print
from data_pipelines.parts import SPLITS, Job, Part, Survey, Tally, Walk, clear, finished, parts_of, stat, survey
from data_pipelines.settings import Settings
from data_pipelines.sources import Rejection, Source, scored_pictures, sources
from data_pipelines.sources.sft import Dialogues
from data_pipelines.steps import Alike, Step, told
from mm1.batch import ImageSpec
from mm1.data.encode import picture_positions
from mm1.data.fingerprint import Known
from mm1.data.shards import DAMAGED, FORMAT
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError, at_least
from mm1.runs import read_object, write_json

__all__ = ["Pipeline", "Settings", "build"]

SMALLEST_WITH_VALIDATION = 20
RAW = "captions/, interleaved/, text/ or sft/ as docs/data.md lays them out"
BUCKET_ROWS = 2**20  # what one process sorts at a time: with signatures of 0.5 kB about 0.5 GB


def build(data: Path, out: Path, settings: Settings, *, strict: bool = False, workers: int = 1) -> dict[str, Any]:
    """Write the shards of a raw corpus folder beside the tokenizer in ``out``; returns the manifest.

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
    found = sources(data, settings.captions_per_image, settings.also)
    if not found:
        raise UserError(f"{data} holds nothing to train on; expected {RAW}")
    if data == out.resolve():
        raise UserError(f"{out} is the raw corpus itself; expected another folder for the shards")
    return Pipeline(found, settings, scored=data, strict=strict).run(out, Local(workers))


@dataclass
class Pipeline:
    """Raw files, what happens to their documents, and what the shards hold.

    Args:
        inputs: Readers, by stream.
        settings: What the shards hold.
        steps: What every document goes through, in order.
        scored: Raw corpus folder whose scored pictures are left out of training; None looks for none.
        strict: Stop at the first thing that is broken, instead of counting it.
    """

    inputs: dict[str, list[Source]]
    settings: Settings
    steps: Sequence[Step] = ()
    scored: Path | None = None
    strict: bool = False

    def run(self, out: Path, engine: Engine) -> dict[str, Any]:
        """Write what is not done yet. ``manifest.json`` is there only while the whole corpus is.

        Args:
            out: Corpus folder, with its tokenizer.
            engine: Who does the work.

        Raises:
            UserError: No tokenizer, a fault under ``strict``, or nothing left to train on.
        """
        tokenizer, settings = Tokenizer(find(out)), self.settings
        parts = {name: parts_of(name, readers, settings.part_rows) for name, readers in self.inputs.items()}
        pictures = scored_pictures(self.scored) if self.scored else []
        about = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, **settings.record()}
        base = _hash([about, self.strict, [stat(path) for path in pictures], [told(step) for step in self.steps]])
        surveys = self._surveys(parts, engine)
        thresholds = {name: _threshold(found, settings.val_share) for name, found in surveys.items()}
        every = {name: _hash([base, thresholds[name], [one.stamp for one in surveys[name]]]) for name in parts}
        done = _done(out, every, parts)
        if set(done) == set(parts) and (out / "manifest.json").exists():
            return read_object(out / "manifest.json", "a manifest")
        write_json(out / "unfinished.json", {**about, "streams": done})
        (out / "manifest.json").unlink(missing_ok=True)
        known, unreadable = self._scored(pictures, engine)
        about["scored"] = {"pictures": len(known), "unreadable": unreadable}
        walk = Walk(tuple(self.steps), self._lost(out, parts, surveys, every, engine))
        finish = Finish(tokenizer, _limits(settings, tokenizer), _spec(settings), known, settings)
        stamps = {
            (name, part.number): _hash([base, thresholds[name], found.stamp, _losses(walk, part)])
            for name in parts
            for part, found in zip(parts[name], surveys[name], strict=True)
        }
        job = Job(out, walk, finish, thresholds, stamps, settings.shard_bytes, self.strict)
        for name in parts:
            if name not in done:
                done[name] = self._stream(name, every[name], parts[name], surveys[name], job, engine)
                write_json(out / "unfinished.json", {**about, "streams": done})
        if not any(written["train"]["pieces"] for written in done.values()):
            where = self.scored or "the pipeline"
            raise UserError(f"{where} leaves nothing to train on; {out}/unfinished.json says why, by reason")
        if any(isinstance(reader, Dialogues) for readers in self.inputs.values() for reader in readers):
            about["template"] = settings.words.record()  # also ours: it says that there are conversations
        manifest = {**about, "streams": {name: done[name] for name in parts}}
        write_json(out / "manifest.json", manifest)
        (out / "unfinished.json").unlink()
        shutil.rmtree(out / "buckets", ignore_errors=True)
        return manifest

    def _surveys(self, parts: dict[str, list[Part]], engine: Engine) -> dict[str, list[Survey]]:
        flat = [part for group in parts.values() for part in group]
        found: list[Survey | None] = [None] * len(flat)
        for place, one in engine.map(survey, flat):
            found[place] = one
        rest = iter(found)
        return {name: [next(rest) for _ in group] for name, group in parts.items()}  # type: ignore[misc]

    def _scored(self, paths: list[Path], engine: Engine) -> tuple[Known, dict[str, Any]]:
        tally, prints = Tally(), []
        with tqdm(total=len(paths), desc="scored pictures", mininterval=1.0, disable=not paths) as bar:
            for place, found in engine.map(scored_print, paths):
                bar.update()
                if isinstance(found, Rejection):
                    assert self.scored is not None
                    where = str(paths[place].relative_to(self.scored))
                    if self.strict:
                        raise UserError(f"{where}: {found.reason}; mend it, or leave --strict out to count and go on")
                    tally.drop(Rejection(where, found.reason))
                else:
                    prints.append(found)
        return Known(prints), tally.dropped

    def _lost(
        self,
        out: Path,
        parts: dict[str, list[Part]],
        surveys: dict[str, list[Survey]],
        stamps: dict[str, str],
        engine: Engine,
    ) -> dict[tuple[int, str, int], numpy.ndarray]:
        """For each step that compares documents, and each part, who is lost."""
        lost: dict[tuple[int, str, int], numpy.ndarray] = {}
        for at, step in enumerate(self.steps):
            for name, group in parts.items() if isinstance(step, Alike) else ():
                assert isinstance(step, Alike)
                rows = sum(one.documents for one in surveys[name])
                folder = out / "buckets" / f"{name}-{at}-{stamps[name][:16]}"
                buckets = 1 + rows * step.keys_per_document // BUCKET_ROWS
                keys = Keys(Walk(tuple(self.steps[:at]), dict(lost)), step, folder, buckets)
                title = f"{name}: keys of {type(step).__name__}"
                for _ in _progress(engine.map(keys, group), surveys[name], title):
                    pass
                filled = sorted(path for path in folder.glob("*") if path.is_dir())
                found = by_part(losers for _, losers in engine.map(Losers(step), filled))
                lost |= {(at, name, number): places for number, places in found.items()}
        return lost

    def _stream(
        self, name: str, stamp: str, parts: list[Part], surveys: list[Survey], job: Job, engine: Engine
    ) -> dict[str, Any]:
        written: list[dict[str, Any]] = [{}] * len(parts)
        for place, one in _progress(engine.map(job, parts), surveys, name):
            written[place] = one
        tally = Tally()
        for one in written:
            tally.add(one)
        shards = {split: [shard for one in written for shard in one["shards"][split]] for split in SPLITS}
        names = {shard["file"].partition(".")[0] for split in SPLITS for shard in shards[split]}
        clear(job.out / name, keep=lambda path: path.name.partition(".")[0] in names)
        clear_notes(job.out / name, len(parts))
        splits = {split: {**tally.split[split], "shards": shards[split]} for split in SPLITS}
        steps = {"steps": tally.steps} if tally.steps else {}
        return {"stamp": stamp, "parts": len(parts), **splits, **steps, "dropped": tally.dropped}


def _limits(settings: Settings, tokenizer: Tokenizer) -> Limits:
    """What a row takes, its pictures counted whole: a document is cut before its pictures are."""
    views = settings.views
    positions = picture_positions(views, tokenizer, settings.tokens_per_image)
    if settings.row_tokens < positions + 3:
        in_views = views.count * settings.tokens_per_image
        raise UserError(
            f"row_tokens is {settings.row_tokens}; a picture of {views} x {settings.tokens_per_image} tokens and "
            f"{positions - in_views} of separators with begin, end and a word takes at least {positions + 3}"
        )
    pictures = settings.images_per_row // views.count
    return Limits(settings.row_tokens, pictures, positions, settings.cut, settings.words)


def _spec(settings: Settings) -> ImageSpec:
    return ImageSpec(
        settings.image_px,
        settings.tokens_per_image,
        resize=settings.resize,
        interpolation=settings.interpolation,
        views=settings.views,
    )


def _threshold(surveys: list[Survey], val_share: float) -> int:
    """Hashes below it are validation. A stream of 20 documents or more has at least one, if any is asked for."""
    documents, lowest = sum(one.documents for one in surveys), min((one.lowest for one in surveys), default=2**64)
    threshold = int(val_share * 2**64)
    if val_share and documents >= SMALLEST_WITH_VALIDATION and lowest < 2**64:
        threshold = max(threshold, lowest + 1)
    return threshold


def _losses(walk: Walk, part: Part) -> list[Any]:
    return [walk.lost.get((at, part.stream, part.number), numpy.zeros(0)).tolist() for at in range(len(walk.steps))]


def clear_notes(folder: Path, parts: int) -> None:
    """Delete the notes of parts that there are no more."""
    for path in (folder / "parts").glob("*.json"):
        if int(path.stem) >= parts:
            path.unlink()


def _done(out: Path, stamps: dict[str, str], parts: dict[str, list[Part]]) -> dict[str, Any]:
    """Streams that an earlier run finished with the same stamp, and whose shards are still there."""
    for name in ("manifest.json", "unfinished.json"):
        if (out / name).exists():
            written = read_object(out / name, f"what mm1-data shards wrote; {DAMAGED}").get("streams", {})
            return {
                stream: written[stream]
                for stream, stamp in stamps.items()
                if written.get(stream, {}).get("stamp") == stamp and _whole(out / stream, len(parts[stream]))
            }
    return {}


def _whole(folder: Path, parts: int) -> bool:
    return all(finished(folder, number) is not None for number in range(parts))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _progress(results: Iterator[tuple[int, Any]], surveys: list[Survey], what: str) -> Iterator[tuple[int, Any]]:
    """The results, with a bar over documents."""
    with tqdm(
        total=sum(one.documents for one in surveys), desc=what, mininterval=1.0, unit=" documents", unit_scale=True
    ) as bar:
        for place, one in results:
            bar.update(surveys[place].documents)
            yield place, one
