"""What a browser may send, and pictures out of it: everything is bounded before it is read or decoded.

A file of some kB can claim gigabytes of pixels, so its header is read first, and only by PIL's readers of plain raster
formats: its reader of PostScript, for one, starts another program.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from mm1.data.image import MAX_PIXELS, PictureError, decode
from mm1.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
PICTURE_MB = 20  # of 10^6 bytes, one file
PICTURES_AT_ONCE = 16
PICTURES_IN_ALL, IN_ALL_MB = 64, 100  # of a conversation, its examples among them
TEXT_CHARACTERS = 20_000
THUMBNAIL_PX = 320


@dataclass(frozen=True)
class Picture:
    """A picture somebody sent.

    Args:
        data: Its file.
        name: What the sender calls it.
        thumbnail: A small JPEG of it as a data URI.
    """

    data: bytes
    name: str
    thumbnail: str


def take(paths: Sequence[str | Path], folder: Path, held: Sequence[Picture] = ()) -> tuple[Picture, ...]:
    """Read uploaded pictures. Their files stay for a while: two boxes of the page may hold the same picture.

    Args:
        paths: Where they lie.
        folder: The folder of uploads; nothing outside of it is read.
        held: Pictures that the conversation has already.

    Raises:
        UserError: Too many, too large, or no picture that can be read; it names the sender's file and no path.
    """
    if not all(_inside(Path(path), folder) for path in paths):
        raise UserError("a picture is named that was not uploaded here; expected one chosen on this page")
    if len(paths) > PICTURES_AT_ONCE:
        raise UserError(f"{len(paths)} pictures at once; expected at most {PICTURES_AT_ONCE}")
    if len(held) + len(paths) > PICTURES_IN_ALL:
        raise UserError(
            f"{len(held)} pictures are in the conversation and its examples, {len(paths)} more are sent; expected at "
            f"most {PICTURES_IN_ALL}: clear it, or remove examples"
        )
    found = tuple(_read(Path(path)) for path in paths)
    in_all_mb = sum(len(picture.data) for picture in (*held, *found)) / 10**6
    if in_all_mb > IN_ALL_MB:
        raise UserError(
            f"pictures of {in_all_mb:.0f} MB with those of the conversation and its examples; expected at most "
            f"{IN_ALL_MB}: clear it, or remove examples"
        )
    return found


def sweep(folder: Path, older_s: float) -> int:
    """Remove uploaded files that were not touched for a while; how many bytes are left.

    Args:
        folder: The folder of uploads.
        older_s: Age from which a file goes.
    """
    left_bytes, now_s = 0, time.time()
    for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder before the folder
        try:
            about = path.stat()
            if path.is_dir():
                if now_s - about.st_mtime > older_s:
                    path.rmdir()
            elif now_s - about.st_mtime > older_s:
                path.unlink()
            else:
                left_bytes += about.st_size
        except OSError:  # gone already, or a folder that is not empty
            continue
    return left_bytes


def text_of(text: str | None) -> str:
    """A text that somebody typed.

    Raises:
        UserError: It is too long even to count its tokens.
    """
    text = text or ""
    if len(text) > TEXT_CHARACTERS:
        raise UserError(f"a text of {len(text):,} characters; expected at most {TEXT_CHARACTERS:,}")
    return text


def picture_of(data: bytes, name: str) -> Picture:
    """A picture out of the bytes of its file.

    Raises:
        UserError: It is none that can be read, or claims too many pixels.
    """
    expected = "expected a picture such as a JPEG, PNG, WebP or GIF"
    if not data:
        raise UserError(f"{name} is empty; {expected}")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
        if width * height > MAX_PIXELS:
            raise PIL.Image.DecompressionBombError
        picture = decode(data)
    except PIL.Image.DecompressionBombError:
        raise UserError(
            f"{name} claims more than {MAX_PIXELS // 10**6} megapixels; expected a smaller picture"
        ) from None
    except PictureError as error:
        raise UserError(f"{name} cannot be read ({error}); {expected}") from None
    except Exception:  # PIL's readers raise whatever a broken file makes them raise
        raise UserError(f"{name} is no picture that can be read; {expected}") from None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return Picture(data, name, f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")


def _read(path: Path) -> Picture:
    name = path.name[-60:]
    try:
        size = path.stat().st_size
        if size > PICTURE_MB * 10**6:
            raise UserError(f"{name} has {size / 10**6:.1f} MB; expected at most {PICTURE_MB}")
        data = path.read_bytes()
    except OSError:
        raise UserError(f"{name} is no longer there; expected a picture: choose it again") from None
    return picture_of(data, name)


def _inside(path: Path, folder: Path) -> bool:
    where = os.path.realpath(path)
    return where.startswith(os.path.realpath(folder) + os.sep)
