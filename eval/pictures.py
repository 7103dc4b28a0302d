"""Pictures as files: read with a sentence for the user when they are missing, told apart by content, not by name."""

from __future__ import annotations

import hashlib
import io
from functools import cache, lru_cache
from pathlib import Path

import PIL.Image

from mm1.data.image import PictureError, decode
from mm1.data.reader import GREY
from mm1.errors import UserError


@lru_cache(maxsize=2048)
def read(path: Path) -> bytes:
    """The bytes of a picture's file, checked to decode so that an error can name it.

    Raises:
        UserError: There is no such file, or it is no picture.
    """
    data = _bytes(path)
    try:
        decode(data)
    except PictureError as error:
        raise UserError(f"{path} is not readable ({error}); expected the file of a picture") from None
    return data


def blank(path: Path) -> bytes:
    """The same grey picture for every path, that of training without pictures (``data.blank``)."""
    return _grey()


@cache
def _grey() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (GREY, GREY, GREY)).save(file, "PNG")
    return file.getvalue()


@cache
def content(path: Path) -> str:
    """A name for what the file holds: two files with the same bytes are the same photograph."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} is not readable ({error.strerror}); expected the file of a picture") from None
