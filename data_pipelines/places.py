"""Where raw files are: on this machine, or at any address that fsspec knows, fetched when they are read."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from data_pipelines.cache import cache, file_system
from mm1.errors import UserError


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at an fsspec address such as ``s3://bucket/a.tar``.

    Args:
        address: The whole address.
    """

    address: str

    @property
    def name(self) -> str:
        """Its last part."""
        return self.address.rpartition("/")[2]

    def beside(self, name: str) -> Remote:
        """The file of that name in the same folder.

        Raises:
            ValueError: The name climbs out of the folder.
        """
        return Remote(f"{self.address.rpartition('/')[0]}/{inside(name)}")

    def exists(self) -> bool:
        """Whether it is there.

        Raises:
            UserError: The address does not answer.
        """
        return cache().ask(self.address, lambda system, path: bool(system.exists(path)))

    def read_bytes(self) -> bytes:
        """Its bytes, kept in the cache: for pictures, which are small and many.

        Raises:
            OSError: It is not there, or the address stopped answering.
        """
        return _answered(self.address)


def located(folder: str | Path) -> Path | Remote:
    """A folder of this machine or elsewhere, as users give it in one setting.

    Raises:
        UserError: It is not there, or no file system knows the address.
    """
    text = str(folder).removeprefix("file://").rstrip("/")
    if "://" in text:
        file_system(text)
        return Remote(text)
    path = Path(text).expanduser()
    if not path.is_dir():
        raise UserError(f"folder is {folder}, which is not there; expected a folder of pictures")
    return path.absolute()


@dataclass(frozen=True, slots=True)
class Stretch:
    """A picture inside a file elsewhere, by where its bytes stand; only they are fetched.

    Args:
        remote: The file, such as a tar.
        name: The picture's name there.
        offset: Its first byte.
        size: How many bytes it has.
    """

    remote: Remote
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Its bytes.

        Raises:
            OSError: The file is not there, or its address stopped answering.
        """
        return _answered(self.remote.address, self.offset, self.offset + self.size)


def expand(given: Sequence[str | Path]) -> list[Path | Remote]:
    """The files that paths, patterns and addresses name, sorted within each, none of them twice.

    ``*`` and ``**`` stand for any name and any folders, ``{00000..00012}`` and ``{a,b}`` for each in turn. An address
    without ``*`` is taken at its word, and asked for when it is read.

    Raises:
        UserError: One of them finds nothing.
    """
    found: list[Path | Remote] = []
    for one in given:
        text = os.path.expanduser(str(one).removeprefix("file://"))
        if "://" not in text and os.path.lexists(text):  # whatever characters its name is made of
            found.append(Path(text))
            continue
        try:
            spelled = list(braceexpand.braceexpand(text, escape=False))
        except ValueError:
            raise UserError(f"files has {text}, whose braces do not match; expected such as {{00000..00012}}") from None
        for name in spelled:
            found += _addresses(name) if "://" in name else _paths(name)
    return list(dict.fromkeys(found))


def local(file: Path | Remote) -> Path:
    """The file on this machine, fetched if it is elsewhere.

    Raises:
        UserError: It is not there, or its address stopped answering.
    """
    if isinstance(file, Path):
        return file
    try:
        return cache().file(file.address)
    except FileNotFoundError:
        raise UserError(f"files has {file.address}, which is not there; expected a file at that address") from None


def address_of(path: Path) -> Remote | None:
    """The address that a local file was fetched from, or None for one of this machine."""
    address = cache().address_of(path)
    return None if address is None else Remote(address)


def inside(name: str) -> str:
    """A relative name, made plain.

    Raises:
        ValueError: It climbs out of the folder it is relative to.
    """
    plain = posixpath.normpath(name)
    if plain.startswith("/") or plain.split("/")[0] in ("..", "."):
        raise ValueError(f"{name} is outside of its folder")
    return plain


def _paths(pattern: str) -> list[Path | Remote]:
    found: list[Path | Remote] = []
    found += [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not found:
        many = glob.has_magic(pattern)
        raise UserError(
            f"files has {pattern}, which {'matches no file' if many else 'is not there'}; "
            f"expected {'a pattern of files' if many else 'a file'} seen from {os.getcwd()}"
        )
    return found


def _addresses(pattern: str) -> list[Path | Remote]:
    if "*" not in pattern:
        return [Remote(pattern)]
    if "::" in pattern:
        raise UserError(f"files has {pattern}; expected no * in an address of several file systems")
    system, _ = file_system(pattern)
    try:
        listed = cache().ask(pattern, lambda system, path: system.glob(path, detail=True))
    except FileNotFoundError:
        listed = {}
    names = sorted(name for name, about in listed.items() if about["type"] == "file")
    if not names:
        raise UserError(f"files has {pattern}, which matches no file; expected a pattern of files at that address")
    return [Remote(system.unstrip_protocol(name)) for name in names]


def _answered(address: str, start: int | None = None, stop: int | None = None) -> bytes:
    try:
        return cache().read_bytes(address, start, stop)
    except UserError as error:  # for a picture one loss among others, to be counted
        raise OSError(str(error)) from error
