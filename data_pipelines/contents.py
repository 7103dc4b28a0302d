"""What a file or a folder holds, file by file, each with its reader; and the pipeline that would read all of it."""

from __future__ import annotations

import glob
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_pipelines import sources as readers
from data_pipelines.formats import FORMATS, PICTURES, Format, store
from data_pipelines.sniff import Seen, look
from data_pipelines.sources import Source
from mm1.errors import UserError
from mm1.runs import read_object


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
        kind = type(self.source)
        short = getattr(readers, kind.__name__, None) is kind
        return f"data_pipelines.sources.{kind.__name__}" if short else f"{kind.__module__}.{kind.__qualname__}"

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


def contents_of(path: Path, reader: str | None = None, pictures: Path | None = None) -> Contents:
    """What ``path``, a file or a folder, holds.

    Args:
        path: A file or a folder of this machine.
        reader: A class to read it by, short or with its modules, instead of what is told from content.
        pictures: Where pictures are that rows name; by default the folder of their file.

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
    contents = _files(path, _chosen(reader) if reader else None, pictures)
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


@dataclass
class _Sorting:
    """Files as they are looked at, one after the other.

    Args:
        chosen: The class that a user named, or None.
        pictures: The folder of pictures that a user named, or None.
    """

    chosen: type[Source] | None
    pictures: Path | None
    groups: dict[str, tuple[Format | None, Seen, dict[str, Any], list[Path]]] = field(default_factory=dict)
    unknown: dict[str, Path] = field(default_factory=dict)
    shown: int = 0
    left: int = 0

    def add(self, file: Path) -> None:
        seen = look(file)
        format = None if self.chosen else format_of(seen)
        if seen.holder == "picture" and not self.chosen:
            self.shown += 1
        elif format or self.chosen:
            reader = getattr(readers, format.reader) if format else self.chosen
            settings = {**(format.settings(seen) if format else {}), **self._store(reader, seen, file)}
            key = f"{format and format.title} {settings}"
            self.groups.setdefault(key, (format, seen, settings, []))[3].append(file)
        else:
            self.unknown.setdefault(seen.told, file)
            self.left += 1

    def _store(self, reader: type[Source] | None, seen: Seen, file: Path) -> dict[str, Any]:
        """Where the reader finds pictures, where it has to be told or the user tells it."""
        assert reader is not None
        wanted = inspect.signature(reader).parameters.get("pictures")
        if wanted is None or (wanted.default is not inspect.Parameter.empty and self.pictures is None):
            return {}
        return {"pictures": store(seen, self.pictures or file.parent)}

    def found(self) -> Iterator[Found]:
        for format, seen, settings, files in self.groups.values():
            if format is None:
                assert self.chosen is not None
                source = self.chosen(files, **made(settings))
                yield Found(f"what --format {self.chosen.__name__} reads", f"seen was {seen.told}", source, settings)
            else:
                settings |= _root(format, files)
                source = getattr(readers, format.reader)(files, **made(settings))
                yield Found(format.title, seen.told, source, settings)


def format_of(seen: Seen) -> Format | None:
    """The first format that holds of what was seen."""
    return next((format for format in FORMATS if format.holds(seen)), None)


def made(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a YAML says them, with the objects that it names by ``class_path``."""

    def one(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        module, _, name = value["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**value["init_args"])

    return {name: one(value) for name, value in settings.items()}


def _files(path: Path, chosen: type[Source] | None, pictures: Path | None) -> Contents:
    """What the files at or below ``path`` are, grouped by the reader and its settings."""
    sorting, pairs = _Sorting(chosen, pictures), False
    for folder, names in _walk(path):
        together = set() if chosen else _pairs(names)
        pairs = pairs or bool(together)
        for name in names:
            if name not in together and (chosen or not _beside(folder, name, names)):
                sorting.add(folder / name)
    found = list(sorting.found())
    if pairs:
        title = "folders of captioned pictures, as img2dataset writes them"
        found.insert(0, Found(title, "KEY.jpg stands beside KEY.txt or KEY.json", readers.CaptionFolders(path)))
    unknown = tuple((file, told) for told, file in sorting.unknown.items())[:5]
    return Contents(path, "files", tuple(found), sorting.shown, unknown, sorting.left)


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at and below a folder with the names of their files, hidden ones left out; of a file itself its own."""
    if not path.is_dir():
        yield path.parent, [path.name]
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _pairs(names: list[str]) -> set[str]:
    """Pictures and texts of a folder, if some of them share a name."""
    kinds = [(name, *name.lower().rsplit(".", 1)) for name in names if "." in name]
    shown = {stem for _, stem, kind in kinds if kind in PICTURES}
    if shown & {stem for _, stem, kind in kinds if kind in ("txt", "json")}:
        return {name for name, _, kind in kinds if kind in PICTURES | {"txt", "json"}}
    return set()


def _beside(folder: Path, name: str, names: list[str]) -> bool:
    """Whether a file is what img2dataset writes beside its tars, folders and parquet files."""
    if stem := re.fullmatch(r"(.+)_stats\.json", name):
        return {f"{stem[1]}.tar", f"{stem[1]}.parquet"} & {*names} != set()
    stem = re.fullmatch(r"(.+)\.parquet", name)
    return stem is not None and (f"{stem[1]}.tar" in names or (folder / stem[1]).is_dir())


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
