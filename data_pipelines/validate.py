"""What raw files hold, what is wrong with them, and how to train on them: told before anything is written.

Every document is read as the pipeline would read it, its pictures are decoded, and it goes through the steps of a
pipeline if one is given. Nothing that a file holds ends the look at it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.contents import Contents, Found, as_pipeline, contents_of, inputs_of
from data_pipelines.parts import Tally, like_another, taken
from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.places import Remote, Stretch, local
from data_pipelines.sources.base import Draft, Place, Rejection, Source
from data_pipelines.steps import Alike, Pictures, Step
from mm1.data.image import PictureError
from mm1.data.shards import ShardSet, read_manifest
from mm1.errors import UserError, at_least

FIRSTS = 64  # as in data_pipelines.alike
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Spread:
    """Numbers by how often they came, to tell smallest, middle and largest in bounded memory.

    Numbers above a thousand are kept to three digits.
    """

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Count one."""
        unit = 10 ** max(0, len(str(value)) - 3)
        self.counts[value // unit * unit if value >= 1000 else value] += 1

    def quantile(self, share: float) -> int:
        """The smallest number that is not below this share of all."""
        want, passed = share * self.counts.total(), 0
        for value in sorted(self.counts):
            passed += self.counts[value]
            if passed >= want:
                return value
        return 0

    def __str__(self) -> str:
        if not self.counts:
            return "none"
        low, middle, high = (self.quantile(share) for share in (0, 0.5, 1))
        return f"min {low:>7,}   median {middle:>7,}   max {high:>9,}   {self.bars()}"

    def bars(self) -> str:
        """A histogram of twelve equal steps in the logarithm."""
        low, high = math.log1p(min(self.counts)), math.log1p(max(self.counts))
        if low == high:
            return BARS[-1]
        heights = [0] * 12
        for value, count in self.counts.items():
            heights[min(11, int(12 * (math.log1p(value) - low) / (high - low)))] += count
        return "".join(BARS[math.ceil(7 * height / max(heights))] for height in heights)


@dataclass
class Findings:
    """What was found in the files of one reader.

    Args:
        found: The reader and its files.
        documents: What could be read as documents.
        whole: Whether all was read, and not the first rows alone.
    """

    found: Found
    documents: int = 0
    whole: bool = True
    wrong: Tally = field(default_factory=Tally)
    characters: Spread = field(default_factory=Spread)
    width: Spread = field(default_factory=Spread)
    height: Spread = field(default_factory=Spread)
    pictures: int = 0
    decoded: int = 0
    elsewhere: int = 0
    undecoded: Tally = field(default_factory=Tally)
    steps: list[StepCount] = field(default_factory=list)


@dataclass
class StepCount:
    """What one step let through.

    Args:
        step: It.
        before: Documents that came to it.
        after: Documents that left it.
        why: What it refused, by reason.
        firsts: For a step that compares: sketches of the documents that stayed, by key.
    """

    step: Step
    before: int = 0
    after: int = 0
    why: Tally = field(default_factory=Tally)
    firsts: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        """The document after this step, counted."""
        self.before += 1
        result = taken(self.step, draft, pictures)
        if (
            isinstance(self.step, Alike)
            and isinstance(result, Draft)
            and self._like_another(self.step, draft, pictures)
        ):
            result = like_another(self.step, draft)
        if isinstance(result, Draft):
            self.after += 1
        else:
            self.why.drop(result)
        return result

    def _like_another(self, step: Alike, draft: Draft, pictures: Pictures) -> bool:
        try:
            keys = [int(key) for key in step.keys(draft, pictures)]
            sketch = step.sketch(draft, pictures) if keys else b""
        except PictureError:
            return False
        if any(step.alike(first, [sketch])[0] for key in keys for first in self.firsts[key]):
            return True
        for key in keys:
            if len(self.firsts[key]) < FIRSTS:
                self.firsts[key].append(sketch)
        return False


def validate(
    path: Path,
    *,
    rows: int | None = None,
    reader: str | None = None,
    pictures: Path | None = None,
    pipeline: Path | None = None,
    write: Path | None = None,
) -> str:
    """The report on a file or folder.

    Args:
        path: Raw files, a raw corpus folder (docs/data.md), a finished corpus, or a pipeline's YAML.
        rows: Most rows to read of each format; None reads all.
        reader: Class to read by, instead of what content tells.
        pictures: Folder of the pictures that rows name, where that is not the folder of their file.
        pipeline: YAML with the steps that documents would go through.
        write: Where to write a YAML that reads these files.

    Raises:
        UserError: Nothing that can be read.
    """
    at_least(1, {"rows": 1 if rows is None else rows})
    if path.suffix in (".yaml", ".yml") and not reader:
        pipeline = path
        contents = inputs_of(read_pipeline(path)[0].inputs, path)
    else:
        contents = contents_of(path, reader, pictures)
    if contents.layout == "shards":
        return _corpus(path, rows)
    steps = read_pipeline(pipeline)[0].steps if pipeline else ()
    chapters = ["\n".join(_told(examine(found, rows, steps), pipeline)) for found in contents.found]
    if write:
        write.write_text(as_pipeline(contents.found))
    return "\n\n".join([*chapters, *_beside(contents), *_commands(contents, pipeline or write)])


def examine(found: Found, rows: int | None = None, steps: Sequence[Step] = ()) -> Findings:
    """Read the documents of a reader's files, all or the first ``rows`` rows, with a bar on standard error."""
    findings = Findings(found, steps=[StepCount(step) for step in steps])
    read = (draft for file in found.source.files() for draft in read_drafts(found.source, file))
    for draft in tqdm(
        itertools.islice(read, rows), desc=found.title, unit=" rows", mininterval=1.0, delay=1.0, leave=False
    ):
        if isinstance(draft, Rejection):
            findings.wrong.drop(draft)
            continue
        findings.documents += 1
        pictures = Pictures()
        _look(draft, pictures, findings)
        for step in findings.steps:
            result = step(draft, pictures)
            if isinstance(result, Rejection):
                break
            draft = result
    findings.whole = rows is None or next(read, None) is None
    return findings


def read_drafts(source: Source, file: Path | Remote) -> Iterator[Draft | Rejection]:
    """The documents of a file. A reader that the file makes fail is told as one more fault of the file."""
    try:
        yield from source.drafts_in(local(file))
    except Exception as error:  # whatever it is, the other files are worth a look
        first = (str(error).splitlines() or [""])[0]
        yield Rejection(file.name, f"reading stopped ({type(error).__name__}: {first:.80})")


def _look(draft: Draft, pictures: Pictures, findings: Findings) -> None:
    findings.characters.add(len(draft.text))
    for lost in draft.lost:
        findings.wrong.drop(lost)
    for place in draft.pictures:
        findings.pictures += 1
        if isinstance(place, Remote | Stretch):
            findings.elsewhere += 1
            continue
        try:
            width, height = pictures.pixels(place).size
        except PictureError as error:
            findings.undecoded.drop(Rejection(_called(draft, place), str(error)))
            continue
        findings.decoded += 1
        findings.width.add(width)
        findings.height.add(height)


def _called(draft: Draft, place: Place) -> str:
    return f"{draft.id} ({place.name})"


def _told(findings: Findings, pipeline: Path | None) -> Iterator[str]:
    found = findings.found
    yield f"{printable(found.where)}: {found.title}"
    yield f"  told by     {found.why}"
    yield f"  read by     {found.class_path}{_settings(found)}"
    wrong = sum(reason["count"] for reason in findings.wrong.dropped.values())
    so_far = "" if findings.whole else ", and there is more: these are the first rows"
    yield f"  documents   {findings.documents:,} can be used, {wrong:,} cannot{so_far}"
    yield from _reasons(findings.wrong)
    yield f"  characters  {findings.characters}"
    if findings.pictures:
        broken = findings.pictures - findings.decoded - findings.elsewhere
        elsewhere = f", {findings.elsewhere:,} at addresses were not fetched" if findings.elsewhere else ""
        yield f"  pictures    {findings.pictures:,}: {findings.decoded:,} decode, {broken:,} do not{elsewhere}"
        yield from _reasons(findings.undecoded)
        if findings.decoded:
            yield f"  width, px   {findings.width}"
            yield f"  height, px  {findings.height}"
    if findings.steps:
        yield f"  steps of {pipeline}, with the documents that come through"
    for step in findings.steps:
        yield f"    {type(step.step).__name__:<24} {step.before:>10,} -> {step.after:,}"
        yield from (f"  {line}" for line in _reasons(step.why))


def _settings(found: Found) -> str:
    """The reader's settings, and of objects among them the class and its own."""

    def told(value: Any) -> str:
        if isinstance(value, dict):
            given = ", ".join(f"{name}={inner}" for name, inner in value["init_args"].items())
            return f"{value['class_path'].rpartition('.')[2]}({given})"
        return str(value)

    return "".join(f", {name} = {told(value)}" for name, value in found.settings.items())


def _reasons(tally: Tally) -> list[str]:
    return [
        f"    {found['count']:>8,}  {reason}, such as {', '.join(map(printable, found['examples'][:2]))}"
        for reason, found in sorted(tally.dropped.items(), key=lambda entry: -entry[1]["count"])
    ]


def printable(text: str) -> str:
    """Text of a stranger's file for a terminal: no control characters, not long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _beside(contents: Contents) -> list[str]:
    """What else lies there."""
    lines = [f"{contents.pictures:,} picture files lie there"] if contents.pictures and contents.path.is_dir() else []
    if contents.left:
        such = "; ".join(f"{printable(str(file))} is {told}" for file, told in contents.unknown)
        lines.append(f"{contents.left:,} files are left alone: {such}")
    return ["\n".join(lines)] if lines else []


TRAIN = "mm1-train fit --config configs/train/tiny_pretrain.yaml --data.corpus {corpus} --run runs/mine"


def _commands(contents: Contents, pipeline: Path | None) -> list[str]:
    """How to train on it, as commands, and the pipeline's YAML where one is needed and there is none yet."""
    sizes = "--row_tokens 512 --tokens_per_image 16 --image_px 64"
    train = TRAIN.format(corpus="CORPUS")
    if contents.layout == "raw" and not pipeline:
        tokenizer = f"mm1-data tokenizer --data {contents.path} --out CORPUS --vocabulary 2048"
        return [
            "\n  ".join(
                ["to train on it:", tokenizer, f"mm1-data shards --data {contents.path} --out CORPUS {sizes}", train]
            )
        ]
    file = pipeline or "pipeline.yaml"
    tokenizer = f"mm1-data tokenizer --data {file} --out CORPUS --vocabulary 2048"
    told = "\n  ".join(["to train on it:", tokenizer, f"mm1-data run {file} --out CORPUS", train])
    yaml = f"pipeline.yaml (--write pipeline.yaml writes it):\n{as_pipeline(contents.found)}".rstrip()
    return [told] if pipeline else [told, yaml]


def _corpus(path: Path, rows: int | None) -> str:
    """A finished corpus: every sample read back, against its checksum."""
    lines = [f"{path}: a corpus of shards, as mm1-data shards wrote it"]
    for stream in read_manifest(path)["streams"]:
        for split in ("train", "val"):
            shards, wrong = ShardSet(path, stream, split), Tally()
            numbers = range(min(len(shards), rows or len(shards)))
            for number in tqdm(
                numbers, desc=f"{stream} {split}", unit=" samples", mininterval=1.0, delay=1.0, leave=False
            ):
                try:
                    shards[number]
                except UserError as error:
                    wrong.drop(Rejection(f"{shards.path(number).name}:{number}", getattr(error, "reason", "damaged")))
            damaged = sum(reason["count"] for reason in wrong.dropped.values())
            lines.append(f"  {stream:<12} {split:<6} {len(numbers):>10,} samples read, {damaged:,} damaged")
            lines += _reasons(wrong)
    return "\n".join([*lines, "to train on it:", f"  {TRAIN.format(corpus=path)}"])
