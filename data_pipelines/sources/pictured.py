"""Documents that name their pictures: by a path, by a URL that a store knows, or with the bytes in the row itself."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.picture_store import MISSING, PictureStore
from data_pipelines.places import Remote
from data_pipelines.sources.base import Bytes, Place, Rejection, Source, WrongFields

WEB = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")  # what a row may name; never a scheme of this machine
PICTURE_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # JPEG, PNG, GIF, WebP
NO_BASE64 = "picture is no base64"


class Pictured(Source):
    """A kind of file whose rows name pictures that stand elsewhere.

    Args:
        files: As for every :class:`Source`.
        root: As for every source.
        stream: As for every source.
        pictures: Where pictures are that rows name. Without it a path is looked up in ``root``, or else in the file's
            folder, and a URL is asked for.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        pictures: PictureStore | None = None,
    ) -> None:
        super().__init__(files, root=root, stream=stream)
        self.pictures = pictures

    def find(self, file: Path, name: Any) -> Place | None:
        """Where the picture is that ``file`` names, or None if the store does not have it.

        Raises:
            WrongFields: The name is no text, or climbs out of the folder of pictures.
        """
        if self.pictures:
            return self.pictures.find(_name(name))
        scheme, web, _ = _name(name).partition("://")
        if web:
            if scheme.lower() not in WEB:
                raise WrongFields
            return Remote(name)
        return self.picture(file, name, self.root)

    def shown(self, file: Path, place: str, value: Any) -> Place | Rejection:
        """The picture of a value: a name, a URL, a data URL, base64, or what parquet has, ``{"bytes", "path"}``.

        Args:
            file: The file that the value stands in.
            place: The row, for what is counted.
            value: The value.

        Raises:
            WrongFields: It is none of these.
        """
        match value:
            case {"bytes": bytes(data), **rest} if data:
                return embedded(data, rest.get("path"))
            case {"path": str(name)} | {"url": str(name)} | {"image": str(name)}:
                value = name
            case bytes(data):
                return embedded(data)
        name = _name(value)
        if name.startswith("data:") or (name.startswith(PICTURE_BASE64) and len(name) > 64):
            try:
                return embedded(base64.b64decode(name.partition(",")[2] or name, validate=True))
            except (binascii.Error, ValueError):
                if name.startswith("data:"):
                    return Rejection(place, NO_BASE64)
        return self.find(file, name) or missing(place, name)


def embedded(data: bytes, name: Any = None) -> Bytes:
    """A picture that came with its row; one without a name is called by its content."""
    return Bytes(name if isinstance(name, str) and name else hashlib.sha256(data).hexdigest(), data)


def missing(place: str, name: str) -> Rejection:
    """A picture that the store does not have."""
    return Rejection(f"{place} {name:.200}", MISSING, fault=False)


def scalars(row: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What a row says of its document besides its content: numbers, and words that are short."""
    return {
        key: value
        for key, value in row.items()
        if key not in without and (isinstance(value, int | float) or (isinstance(value, str) and len(value) < 4096))
    }


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise WrongFields
    return value
