"""The door ``mm1-data``: from raw files to shards, and looks at both."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from mm1.errors import UserError, door, underscored
from mm1.sample import WHOLE, Views


def scenes(folder: Path, *, worlds: int = 10_000, test_worlds: int = 160, image_px: int = 64, seed: int = 0) -> None:
    """Write a generated raw corpus: drawn pictures with captions, documents, text, questions and instruction turns.

    Args:
        folder: Where to write it.
        worlds: Captioned pictures; everything else to train on grows with it.
        test_worlds: Pictures in each scored set.
        image_px: Side of the pictures.
        seed: Another seed, another corpus.
    """
    from data_pipelines.scenes import write

    write(folder, worlds=worlds, test_worlds=test_worlds, image_px=image_px, seed=seed)


def tokenizer(*, out: Path, data: Path | None = None, vocabulary: int = 2048, take: Path | None = None) -> None:
    """Train a sentencepiece tokenizer on the train text of a raw corpus, or take the one of a trained model.

    Args:
        out: Corpus folder; the file is tokenizer.model, or tokenizer.json where a taken one is Hugging Face's.
        data: Raw corpus folder (docs/data.md) to train on.
        vocabulary: Number of token ids to train.
        take: Instead of training: a model folder (ours or in Hugging Face layout), a *.ckpt, or a tokenizer's file.
    """
    from data_pipelines.train_tokenizer import take_tokenizer, train_tokenizer

    if take is not None and data is None:
        made = take_tokenizer(take, out)
    elif data is not None and take is None:
        made = train_tokenizer(data, out, vocabulary)
    else:
        raise UserError(f"--data is {data} and --take is {take}; expected one of both, to train or to take from")
    print(f"{out}/{made.file_name}: {made.vocabulary} ids, fingerprint {made.fingerprint}")


def shards(
    *,
    data: Path,
    out: Path,
    row_tokens: int = 512,
    tokens_per_image: int = 16,
    images_per_row: int = 16,
    image_px: int = 64,
    resize: Literal["squash", "crop", "pad"] = "squash",
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    keep_pictures: bool = False,
    captions_per_image: int = 1,
    also: tuple[Literal["vqa", "fewshot"], ...] = (),
    val_share: float = 0.02,
    shard_bytes: int = 256_000_000,
    cut: Literal["sentences", "words", "items", "never"] = "sentences",
    part_rows: int = 2048,
    views: Views = WHOLE,
    template: Path | None = None,
    hints: dict[str, str] | None = None,
    strict: bool = False,
    workers: int = 0,
) -> None:
    """Write the shards of a raw corpus; the same call again does nothing.

    Args:
        data: Raw corpus folder (docs/data.md).
        out: Corpus folder, with its tokenizer.
        row_tokens: Positions of a row; a longer document is cut.
        tokens_per_image: Positions of a picture, as the connector makes them.
        images_per_row: The most pictures of a row, each view one of them.
        image_px: Side at which pictures are stored, that of the model.
        resize: How pictures become square, that of the model.
        interpolation: How pictures are resized, that of the model.
        keep_pictures: Store picture files as they are.
        captions_per_image: How many captions of a picture become documents.
        also: Streams to write beside the usual ones: vqa (answered questions), fewshot (runs of pictures with texts).
        val_share: Share of each stream's documents held out for validation.
        shard_bytes: Size at which a shard is closed.
        cut: Where a document that is longer than a row may be cut; words fills rows to the end.
        part_rows: Rows of a raw file that are one unit of work and have shards of their own.
        views: In which views a picture is shown, as the model takes it: rows, columns, overview, separator.
        template: YAML of the words that conversations are told in; configs/template has some.
        hints: By stream, the template's hint behind each question: short, option or sentence.
        strict: Stop at the first thing that is broken instead of counting it.
        workers: Processes; 0 takes one per core, at most 8.
    """
    given = {**locals(), "hints": hints or {}}
    from data_pipelines.describe import describe as table
    from data_pipelines.pipeline import Settings, build

    settings = Settings(**{name: given[name] for name in Settings.__dataclass_fields__})
    print(table(build(data, out, settings, strict=strict, workers=workers or min(os.cpu_count() or 1, 8))))


def run(
    pipeline: Path,
    *,
    out: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int = 0,
    strict: bool = False,
) -> None:
    """Write the shards that a pipeline's YAML describes: files of any public format, steps, settings (docs/data.md).

    Args:
        pipeline: The YAML.
        out: Corpus folder, with its tokenizer; by default the one that the YAML names.
        engine: Processes of this machine, or the Ray cluster that RAY_ADDRESS names.
        workers: Processes; 0 takes one per core, at most 8, and with Ray as many as it gives.
        strict: Stop at the first thing that is broken instead of counting it.
    """
    from data_pipelines.describe import describe as table
    from data_pipelines.engines import Local, Ray
    from data_pipelines.pipeline_file import read_pipeline

    made, named = read_pipeline(pipeline)
    made.strict = made.strict or strict
    if (folder := out or named) is None:
        raise UserError(f"{pipeline} names no out and --out is not given; expected the corpus folder in one of them")
    work = Ray(workers) if engine == "ray" else Local(workers or min(os.cpu_count() or 1, 8))
    print(table(made.run(folder, work)))


def validate(
    path: Path,
    *,
    rows: int | None = None,
    format: str | None = None,
    pictures: Path | None = None,
    pipeline: Path | None = None,
    write: Path | None = None,
) -> None:
    """Look at files before anything is written: their format, what is wrong with them, how to train on them.

    Args:
        path: A file or a folder of raw data, a finished corpus, or a pipeline's YAML, whose inputs are looked at.
        rows: Most rows to read of each format; all if it is not given.
        format: A reader such as Captions, to read the files by instead of what their content tells.
        pictures: Folder of the pictures that rows name; by default the folder of their file.
        pipeline: A pipeline's YAML; tells how many documents survive each of its steps.
        write: Where to write a pipeline's YAML that reads these files.
    """
    from data_pipelines.validate import validate as report

    print(report(path, rows=rows, reader=format, pictures=pictures, pipeline=pipeline, write=write))


def preview(
    path: Path,
    *,
    out: Path = Path("preview.html"),
    n: int = 20,
    tokenizer: Path | None = None,
    rows: bool = False,
    weights: dict[str, float] | None = None,
    seed: int = 0,
) -> None:
    """Write a page of samples to look at: pictures, tokens, targets, and how documents share a row.

    Args:
        path: A file or a folder of raw data, a pipeline's YAML, or a finished corpus.
        out: The HTML file.
        n: How many samples, or rows.
        tokenizer: A corpus or a model in whose tokens text is shown; a finished corpus has its own.
        rows: Of a finished corpus, packed rows as training sees them instead of documents.
        weights: The mix of rows, as data.weights; by default that of training.
        seed: The order of documents in rows, as data.seed.
    """
    from data_pipelines.preview import preview as page

    print(page(path, out, n, tokenizer=tokenizer, rows=rows, weights=weights, seed=seed).resolve())


def describe(corpus: Path) -> None:
    """Print what a corpus holds: documents, pieces, pictures, tokens, cuts, and what was left out and why.

    Args:
        corpus: Corpus folder that mm1-data shards wrote.
    """
    from data_pipelines.describe import describe as table
    from mm1.data.shards import read_manifest

    print(table(read_manifest(corpus)))


COMMANDS: dict[str, Any] = {
    "scenes": scenes,
    "tokenizer": tokenizer,
    "shards": shards,
    "run": run,
    "validate": validate,
    "preview": preview,
    "describe": describe,
}
SWITCHES = ("--strict", "--keep_pictures")


def spelled(words: list[str]) -> list[str]:
    """Options with hyphens or underscores, and switches without a value."""
    words = underscored(["--n" if word == "-n" else word for word in words])
    switches = (*SWITCHES, "--rows") if words[:1] == ["preview"] else SWITCHES  # a number where files are validated
    switch = [word in switches and words[i + 1 : i + 2] not in (["true"], ["false"]) for i, word in enumerate(words)]
    return [word + "=true" * bare for word, bare in zip(words, switch, strict=True)]


def main() -> None:
    """Run a command."""
    from jsonargparse import auto_cli

    door(lambda: auto_cli(COMMANDS, args=spelled(sys.argv[1:]), prog="mm1-data", exit_on_error=False))


if __name__ == "__main__":
    main()
