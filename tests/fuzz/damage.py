"""Documents that can be asked which they are, by their text and by each of their pictures, and ways to damage files.

A word of a document's text and the pixels of its pictures name its number together with a digest of it. Whatever a
damaged byte makes of them is either still the same number or none at all, so that a picture beside the text of another
document is seen whatever the file looked like.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
from collections.abc import Callable, Iterable

import numpy
import PIL.Image

NUMBERS = range(12)
SIDE_PX = 8
FULL = int(os.environ.get("MM1_FUZZ", "10000"))  # damaged files of a full run, over all kinds

Damage = Callable[[bytes, random.Random], bytes]


def digest(number: int) -> bytes:
    return hashlib.sha256(f"document {number}".encode()).digest()


def word(number: int) -> str:
    """What stands in the text of a document."""
    return f"N{number:02d}x{digest(number).hex()[:16]}"


def name(number: int) -> str:
    """What its picture is called, far from all others."""
    return f"{digest(number).hex()[20:32]}.png"


def picture(number: int, kind: str = "PNG") -> bytes:
    """Its picture: eight times the same row of colours."""
    row = numpy.frombuffer(digest(number)[: 3 * SIDE_PX], dtype=numpy.uint8).reshape(1, SIDE_PX, 3)
    file = io.BytesIO()
    PIL.Image.fromarray(numpy.repeat(row, SIDE_PX, axis=0)).save(file, kind)
    return file.getvalue()


ROWS = {digest(number)[: 3 * SIDE_PX]: number for number in NUMBERS}


def numbers_said(text: str) -> set[int]:
    """Numbers of the documents whose words stand whole in a text."""
    return {int(found[1:3]) for found in re.findall(r"N\d\dx[0-9a-f]{16}", text) if found == word(int(found[1:3]))}


def number_shown(pixels: numpy.ndarray) -> int | None:
    """Number of the document whose picture this is, uint8[S, S, 3]; None if it is none's any more."""
    rows = {row.tobytes() for row in numpy.ascontiguousarray(pixels)}
    return ROWS.get(rows.pop()) if len(rows) == 1 else None


def flipped(data: bytes, chance: random.Random) -> bytes:
    """Some bits turned over."""
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def overwritten(data: bytes, chance: random.Random) -> bytes:
    """A stretch of zeros or of noise."""
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.choice((1, 16, 512, 700)))
    return data[:start] + (bytes if chance.random() < 0.5 else chance.randbytes)(stop - start) + data[stop:]


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing; sometimes all of it is."""
    return data[: chance.choice((0, chance.randrange(len(data)), chance.randrange(len(data))))]


def lengthened(data: bytes, chance: random.Random) -> bytes:
    """Noise, or the beginning once more, behind the end."""
    return data + chance.choice((chance.randbytes(700), bytes(700), data[: chance.randrange(1, len(data))]))


def inserted(data: bytes, chance: random.Random) -> bytes:
    """Noise in the middle."""
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.choice((1, 3, 512))) + data[at:]


BYTES: tuple[Damage, ...] = (flipped, flipped, overwritten, cut, lengthened, inserted)


def moved(parts: list[bytes], chance: random.Random) -> list[bytes]:
    """Whole rows or members that trade places, come twice or are missing."""
    parts = list(parts)
    at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(3):
        case 0:
            parts[at], parts[other] = parts[other], parts[at]
        case 1:
            parts.insert(other, parts[at])
        case _:
            del parts[at]
    return parts


def lines_moved(data: bytes, chance: random.Random) -> bytes:
    """Lines that trade places, come twice or are missing."""
    return b"".join(moved(data.splitlines(keepends=True), chance))


def members_moved(data: bytes, chance: random.Random) -> bytes:
    """Members of a tar that trade places, come twice or are missing; each with its header."""
    return b"".join(moved(members(data), chance)) + bytes(1024)


def members_renamed(data: bytes, chance: random.Random) -> bytes:
    """A member with the name of another one of its kind, its header's checksum made right: then two have that name."""
    parts = members(data)
    one = chance.choice(parts)
    kind = one[:100].rstrip(b"\0").rpartition(b".")[2]
    alike = [part for part in parts if part[:100].rstrip(b"\0").endswith(b"." + kind) and part is not one]
    if not alike:
        return data
    header = bytearray(one[:512])
    header[:100] = chance.choice(alike)[:100]
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return b"".join(bytes(header) + part[512:] if part is one else part for part in parts) + bytes(1024)


def members(data: bytes) -> list[bytes]:
    """The members of a whole tar."""
    parts, at = [], 0
    while data[at : at + 1] not in (b"\0", b""):
        size = int(data[at + 124 : at + 135], 8)
        stop = at + 512 + -(-size // 512) * 512
        parts.append(data[at:stop])
        at = stop
    return parts


TAR: tuple[Damage, ...] = (*BYTES, members_moved, members_moved, members_renamed)
LINES: tuple[Damage, ...] = (*BYTES, lines_moved, lines_moved)


def wrong_pairs(text: str, pictures: Iterable[numpy.ndarray]) -> set[int]:
    """The numbers that a document names where it names several; none may."""
    shown = {number for pixels in pictures if (number := number_shown(pixels)) is not None}
    named = numbers_said(text) | shown
    return named if len(named) > 1 else set()
