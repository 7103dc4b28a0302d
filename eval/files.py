"""A data folder as downloaded: annotation files found by their own names, pictures where releases put them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.runs import SURROGATE, read_json

ID = (int, str)  # types of an id
DEPTH = 4  # folders below the data folder in which annotation files are looked for
TRIED = 50  # pictures looked for in each folder that may hold them
ANNOTATIONS = (".json", ".jsonl", ".tsv", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Data:
    """Where benchmarks are.

    Args:
        folder: The data folder.
        images: Folders of pictures by benchmark (``{"coco": "/photos/coco"}``), where they lie elsewhere.
        max_missing_share: Share of a benchmark's questions whose picture may be missing; they are then left out.
    """

    folder: Path
    images: Mapping[str, str] = field(default_factory=dict)
    max_missing_share: float = 0.0

    @cached_property
    def files(self) -> list[Path]:
        """Every annotation file that may be one, sorted."""
        found = []
        for at, folders, names in os.walk(self.folder, followlinks=True):
            if len(Path(at).relative_to(self.folder).parts) >= DEPTH:
                folders.clear()
            found += [Path(at) / name for name in names if name.endswith(ANNOTATIONS)]
        return sorted(found)

    def named(self, pattern: str) -> list[Path]:
        """Files whose whole name is like a regular expression."""
        return [file for file in self.files if re.fullmatch(pattern, file.name)]

    def one(self, pattern: str) -> Path | None:
        """The one file whose name is like a regular expression, if there is one.

        Raises:
            UserError: There are two.
        """
        found = self.named(pattern)
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} both stand in {self.folder}; expected one of them (--data)")
        return found[0] if found else None

    def splits(self, pattern: str, accept: Callable[[Path], bool] = lambda file: True) -> dict[str, Path]:
        """Files by what the first group of a pattern is in their names.

        Args:
            pattern: Regular expression of a whole name.
            accept: Whether a file with such a name is meant, by what stands in it.

        Raises:
            UserError: There are two of one name.
        """
        found: dict[str, Path] = {}
        for file in filter(accept, self.named(pattern)):
            match = re.fullmatch(pattern, file.name)
            assert match is not None
            if match[1] in found:
                raise UserError(f"{found[match[1]]} and {file} have one name; expected one of them below --data")
            found[match[1]] = file
        return found

    def placed(self, benchmarks: Sequence[str], file: Path, names: Sequence[Sequence[str]], folders: str) -> list[Path]:
        """Paths of a file's pictures.

        Args:
            benchmarks: Keys of ``images`` under which the folder of these pictures may be set.
            file: The annotation file that names them.
            names: Of each picture the paths it may have below that folder, the same number for all.
            folders: What the folder may be called, words apart; looked for beside the file and above it.

        Raises:
            UserError: ``images`` names a folder that is none.
        """
        if not names:
            return []
        given = next((self.images[name] for name in benchmarks if name in self.images), None)
        if given is not None and not Path(given).is_dir():
            raise UserError(
                f"images sets {benchmarks[0]} to {given}, which is no folder; expected that of its pictures"
            )
        above = [folder for folder in (file.parent, *file.parent.parents) if folder.is_relative_to(self.folder)]
        roots = [Path(given)] if given else [at / name for at in above for name in (".", *folders.split())]
        tried = names[:: max(1, len(names) // TRIED)]
        best = max(
            ((root, form) for root in roots for form in range(len(names[0]))),
            key=lambda at: sum((at[0] / name[at[1]]).is_file() for name in tried),
        )
        return [Path(os.path.normpath(best[0] / name[best[1]])) for name in names]


def rows(
    path: Path, key: str | None, fields: Mapping[str, type | tuple[type, ...]], read: dict[str, Any] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Objects of a JSON or JSONL file that all have ``fields``.

    Args:
        path: The file; ``*.jsonl`` holds one object a line.
        key: Where the list of objects stands in a JSON file; None where the file is that list.
        fields: Names every object must have, with the types they may be of.
        read: The file's content, if it was read before.

    Raises:
        UserError: The file is missing, is no JSON, or an object lacks a field or has another type there.
    """
    expected = f"a list of objects with {', '.join(fields)}"
    if read is not None:
        found: Any = read.get(key or "")
    elif path.suffix == ".jsonl":
        found = json_values(path, expected)
    elif key is None:
        found = read_json(path, expected)
    else:
        found = read_json(path, f"an object whose {key} are {expected}")
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path} has no list{f' named {key}' if key else ''}; expected {key or 'it'}: {expected}")
    for number, row in enumerate(found, start=1):
        check_row(row, fields, path, f"entry {number}")
        yield row


def check_row(row: Any, fields: Mapping[str, type | tuple[type, ...]], path: Path, where: str) -> None:
    """Refuse an object without ``fields``, or with other types in them.

    Raises:
        UserError: The first fault.
    """
    lacking = [field for field in fields if field not in row] if isinstance(row, dict) else list(fields)
    if lacking:
        has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{path}: {where} has {has}; expected also {', '.join(lacking)}")
    for name, kind in fields.items():
        if not isinstance(row[name], kind):
            kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{path}: {where} has {name} = {row[name]!r:.60}; expected {kinds}")


def check_claims(found: Mapping[str, Any], path: Path, wanted: Mapping[str, str], where: str = "") -> None:
    """Refuse a file, or a row of one, that says of itself that it is another's.

    Args:
        found: What it says.
        path: The file.
        wanted: By field what it must begin with; a field that is not there, or no text, says nothing.
        where: Which row.

    Raises:
        UserError: The first field that says something else.
    """
    for name, begin in wanted.items():
        if isinstance(said := found.get(name), str) and said and not said.startswith(begin):
            raise UserError(
                f"{path}{where and f': {where}'} has {name} {said!r:.60}; expected {begin!r}, as its name says"
            )


def strings(values: Any, path: Path, where: str) -> tuple[str, ...]:
    """A list of texts, such as reference answers.

    Raises:
        UserError: It is none, or empty.
    """
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{path}: {where} has {values!r:.60}; expected a list of texts")
    return tuple(values)


def check_ids(ids: Iterable[str], path: Path) -> None:
    """Refuse questions that share an id: they would share their demonstrations and their answer.

    Raises:
        UserError: The id.
    """
    for id, count in Counter(ids).items():
        if SURROGATE.search(id):
            raise UserError(f"{path} has id {id!r}; expected Unicode text")
        if count > 1:
            raise UserError(f"{path} has id {id} on {count} questions; expected every id once")


def text_lines(path: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        UserError: It is no text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable as text ({error}); expected UTF-8") from None


def json_values(path: Path, expected: str) -> list[Any]:
    """What the lines of a file hold, a value each.

    Raises:
        UserError: There is no such file, or a line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]  # a text may hold U+2028
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected {expected}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON lines ({error}); expected {expected}") from None
