"""Which reader takes a file, told from what stands in it; and what a folder holds, file by file.

A new kind of file is one more line in :data:`FORMATS`; the first whose condition holds is taken.
"""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_pipelines import sources as readers
from data_pipelines.sniff import Seen, look
from data_pipelines.sources import Source
from mm1.errors import UserError
from mm1.runs import read_object


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file that has a reader.

    Args:
        title: What its files hold, for people.
        reader: Its class in :mod:`data_pipelines.sources`.
        mark: What it is told by, for people.
        holds: The same for what was seen.
        settings: Arguments of the reader besides ``files``, from what was seen.
    """

    title: str
    reader: str
    mark: str
    holds: Callable[[Seen], bool]
    settings: Callable[[Seen], Mapping[str, Any]] = lambda _: {}


def _text(seen: Seen, *names: str) -> bool:
    return all(isinstance(seen.fields.get(name), str) for name in names)


FORMATS: tuple[Format, ...] = (
    Format(
        "pictures with captions, one picture a line",
        "Captions",
        "lines of JSON with image and captions",
        lambda seen: seen.holder == "lines" and seen.has("image", "captions"),
    ),
    Format(
        "captioned pictures in tars, as img2dataset and webdataset write them",
        "CaptionTars",
        "tars of KEY.jpg beside KEY.txt or KEY.json",
        lambda seen: seen.holder == "tar" and bool(seen.kinds & {"jpg", "jpeg", "png", "webp"}),
    ),
    Format(
        "documents of text and pictures, one a line",
        "Interleaved",
        "lines of JSON with items",
        lambda seen: seen.holder == "lines" and isinstance(seen.fields.get("items"), list),
    ),
    Format(
        "conversations in LLaVA's format",
        "Conversations",
        "JSON with conversations of from and value",
        lambda seen: seen.holder in ("list", "object") and seen.has("conversations"),
    ),
    Format(
        "text, a document a line",
        "TextLines",
        "lines of JSON with text",
        lambda seen: seen.holder == "lines" and _text(seen, "text") and not seen.has("url"),
    ),
    Format("plain text", "PlainText", "text", lambda seen: seen.holder == "text"),
)
"""In the order in which they are tried."""


@dataclass(frozen=True)
class Found:
    """Files that one reader takes.

    Args:
        title: What they hold, for people.
        why: What they were told by.
        source: Their reader.
        settings: Its arguments besides ``files``, as a pipeline's YAML would say them.
    """

    title: str
    why: str
    source: Source
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_path(self) -> str:
        """The reader's name in a pipeline's YAML."""
        return f"{type(self.source).__module__}.{type(self.source).__qualname__}"

    @property
    def where(self) -> str:
        """Its files in a few words."""
        files = self.source.files()
        return str(files[0]) if len(files) == 1 else f"{len(files):,} files such as {files[0]}"


@dataclass(frozen=True)
class Contents:
    """What a path holds.

    Args:
        path: It.
        layout: ``raw`` for a raw corpus folder (docs/data.md), ``shards`` for a finished corpus, else ``files``.
        found: What can be read.
        pictures: Picture files that stand about; text names them, or nothing does.
        unknown: What cannot be told: (path, what was seen), the first of each kind.
        left: How many files those are.
    """

    path: Path
    layout: str
    found: tuple[Found, ...] = ()
    pictures: int = 0
    unknown: tuple[tuple[Path, str], ...] = ()
    left: int = 0


def contents_of(path: Path, reader: str | None = None) -> Contents:
    """What ``path``, a file or a folder, holds.

    Args:
        path: A file or a folder of this machine.
        reader: A class to read it by, short or with its modules, instead of what is told from content.

    Raises:
        UserError: Nothing in it has a reader; the message says what was seen and what is known.
    """
    try:
        is_folder, there = path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError):
        is_folder = there = False
    if not there:
        raise UserError(f"{str(path)!r:.200} does not exist; expected a file or a folder of raw data")
    if is_folder and not reader:
        if _is_corpus(path):
            return Contents(path, "shards")
        if by_stream := readers.sources(path):
            found = [_laid_out(source) for of_stream in by_stream.values() for source in of_stream]
            return Contents(path, "raw", tuple(found))
    contents = _files(path, _chosen(reader) if reader else None)
    if not contents.found:
        raise UserError(_untold(contents))
    return contents


def inputs_of(inputs: Mapping[str, Sequence[Source]], path: Path) -> Contents:
    """What a pipeline's YAML names as its inputs."""
    found = [Found(source.stream, f"{path} says so", source) for of_stream in inputs.values() for source in of_stream]
    return Contents(path, "files", tuple(found))


def as_pipeline(found: Sequence[Found]) -> str:
    """A pipeline's YAML that reads these files (:mod:`data_pipelines.pipeline_file`)."""
    inputs: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        given = [str(file) for file in one.source.given]
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in one.settings.items()}
        made = {"class_path": one.class_path, "init_args": {"files": _shortened(given), **settings}}
        inputs.setdefault(one.source.stream, []).append(made)
    sizes = {"row_tokens": 512, "tokens_per_image": 16, "image_px": 64}
    return yaml.safe_dump({"inputs": inputs, "steps": [], "settings": sizes}, sort_keys=False, width=110)


def _shortened(files: list[str]) -> str | list[str]:
    """One file, or a pattern that finds just these, or all of their names."""
    paths = [Path(file) for file in files]
    folders, endings = {path.parent for path in paths}, {path.suffix for path in paths}
    if len(files) > 1 and len(folders) == len(endings) == 1:
        folder, ending = folders.pop(), endings.pop()
        pattern = str(folder / f"*{ending}")
        if not glob.has_magic(str(folder)) and "{" not in pattern and sorted(glob.glob(pattern)) == sorted(files):
            return pattern
    return files[0] if len(files) == 1 else files


def _is_corpus(folder: Path) -> bool:
    try:
        return "streams" in read_object(folder / "manifest.json", "a manifest")
    except UserError:
        return False


def _laid_out(source: Source) -> Found:
    format = next((format for format in FORMATS if format.reader == type(source).__name__), None)
    return Found(format.title if format else source.stream, f"they stand at {source.pattern}", source)


def _chosen(name: str) -> type[Source]:
    """The class that a user names.

    Raises:
        UserError: There is none of that name.
    """
    known = {kind.__name__: kind for kind in kinds()}
    short = name.rpartition(".")[2]
    if short not in known:
        raise UserError(f"--format is {name!r}; expected one of {', '.join(sorted(known))}")
    return known[short]


def kinds() -> list[type[Source]]:
    """Every reader there is."""

    def below(kind: type[Source]) -> Iterator[type[Source]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    return [kind for kind in below(Source) if not (inspect.isabstract(kind) or kind.__name__.startswith("_"))]  # type: ignore[type-abstract]


def _files(path: Path, chosen: type[Source] | None) -> Contents:
    """What the files at or below ``path`` are, grouped by the reader and its settings."""
    groups: dict[tuple[Any, str], list[Path]] = {}
    seen_first: dict[tuple[Any, str], Seen] = {}
    unknown: dict[str, Path] = {}
    pictures = left = 0
    for file in _walk(path):
        seen = look(file)
        format = next((format for format in FORMATS if format.holds(seen)), None)
        if seen.holder == "picture" and not chosen:
            pictures += 1
        elif format is None and not chosen:
            unknown.setdefault(seen.told, file)
            left += 1
        else:
            settings = format.settings(seen) if format and not chosen else {}
            key = (chosen or format, repr(settings))
            groups.setdefault(key, []).append(file)
            seen_first.setdefault(key, seen)
    found = [_found(key[0], files, seen_first[key]) for key, files in groups.items()]
    return Contents(
        path, "files", tuple(found), pictures, tuple((file, told) for told, file in unknown.items())[:5], left
    )


def _walk(path: Path) -> Iterator[Path]:
    """The files below a folder in order, hidden ones left out; a file itself."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _found(format: Format | type[Source], files: list[Path], seen: Seen) -> Found:
    if isinstance(format, Format):
        settings = {**format.settings(seen), **_root(format, files)}
        return Found(format.title, seen.told, getattr(readers, format.reader)(files, **settings), settings)
    return Found(f"what --format {format.__name__} reads", f"you say so; seen was {seen.told}", format(files))


def _root(format: Format, files: list[Path]) -> dict[str, Any]:
    """The raw corpus folder, where files stand in one at their place: names of pictures may reach into all of it."""
    pattern = PurePosixPath(getattr(readers, format.reader).pattern)
    if len(pattern.parts) == 2 and all(file.parent.name == pattern.parts[0] for file in files):
        return {"root": files[0].resolve().parent.parent}
    return {}


def _untold(contents: Contents) -> str:
    marks = "; ".join(dict.fromkeys(format.mark for format in FORMATS))
    if contents.unknown:
        what = ", ".join(f"{file.name!r:.60} is {told}" for file, told in contents.unknown[:2])
        more = f" (and {contents.left - 2} more files)" if contents.left > 2 else ""
    elif contents.pictures:
        what, more = f"{contents.pictures} picture files and no text that names them", ""
    else:
        what, more = "no files", ""
    return f"{contents.path} holds nothing to train on: {what}{more}; known are {marks}"
