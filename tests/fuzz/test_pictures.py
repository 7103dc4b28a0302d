"""Pictures as the web has them: cut, flipped, turned, animated, huge, tiny, and named to climb out of their folder.

A picture decodes to what it shows, or is told to be none; nothing else, whoever decodes it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest

from data_pipelines.picture_store import HashedPictures, NamedPictures
from data_pipelines.sources import MMC4, Captions, Conversations, Draft, Interleaved, Messages, Rejection
from data_pipelines.steps import Pictures
from mm1.batch import ImageSpec
from mm1.data.image import MAX_PIXELS, PictureError, decode, prepare, prepare_into, room
from tests.data_pipelines.web import json_lines
from tests.fuzz.damage import BYTES, FULL

SPEC = ImageSpec(size_px=16, tokens=4)
SAMPLE = 40
CORNERS = numpy.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], numpy.uint8
)  # red green / blue yellow
TURNS = {  # what EXIF says was done: corners, read line by line, of the picture as it is meant to be seen
    1: (0, 1, 2, 3),
    2: (1, 0, 3, 2),
    3: (3, 2, 1, 0),
    4: (2, 3, 0, 1),
    5: (0, 2, 1, 3),
    6: (2, 0, 3, 1),
    7: (3, 1, 2, 0),
    8: (1, 3, 0, 2),
}


def photo(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> PIL.Image.Image:
    ramp = numpy.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=numpy.uint8)
    return PIL.Image.fromarray(ramp).resize(size, PIL.Image.Resampling.BICUBIC).convert(mode)


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


FILES = {
    "jpeg": encoded(photo(), "JPEG", quality=90),
    "stored": encoded(photo(size=(SPEC.size_px, SPEC.size_px)), "JPEG", quality=92, subsampling=0),
    "progressive": encoded(photo(), "JPEG", progressive=True),
    "cmyk": encoded(photo("CMYK"), "JPEG"),
    "grey": encoded(photo("L"), "JPEG"),
    "png": encoded(photo(), "PNG"),
    "palette": encoded(photo("P"), "PNG"),
    "deep": encoded(PIL.Image.fromarray(numpy.arange(600, dtype=numpy.uint16).reshape(20, 30) * 100), "PNG"),
    "webp": encoded(photo(), "WEBP"),
    "animated": encoded(photo(), "GIF", save_all=True, append_images=[photo("L").convert("RGB")]),
    "animated webp": encoded(photo(), "WEBP", save_all=True, append_images=[photo("L").convert("RGB")]),
    "tiff": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "bmp": encoded(photo(), "BMP"),
}


def throw(kind: str, times: int) -> None:
    whole = FILES[kind]
    into_CSS = room(1, SPEC.size_px)[0]
    assert prepare(whole, SPEC).shape == (3, SPEC.size_px, SPEC.size_px)
    decoded = 0
    for seed in range(times):
        chance = random.Random(f"{kind} {seed}")
        data = chance.choice(BYTES)(whole, chance)
        try:
            picture = decode(data)
        except PictureError:
            picture = None
        try:
            prepare_into(into_CSS, data, SPEC)
        except PictureError:
            assert picture is None, "both ways of decoding refuse the same pictures"
            continue
        assert picture is not None, "both ways of decoding refuse the same pictures"
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= MAX_PIXELS
        decoded += 1
    assert 0 < decoded < times


@pytest.mark.parametrize("kind", FILES)
def test_damaged_pictures(kind: str) -> None:
    throw(kind, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_many_damaged_pictures(kind: str) -> None:
    throw(kind, -(-FULL // len(FILES)))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_way_a_camera_was_held(orientation: int, kind: str) -> None:
    picture = PIL.Image.fromarray(CORNERS).resize((32, 16), PIL.Image.Resampling.NEAREST)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    about: dict[str, Any] = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    data = encoded(picture, kind, quality=95, **about)
    seen = decode(data)
    assert seen.size == ((16, 32) if orientation > 4 else (32, 16))
    wide, high = seen.size
    middles = [
        (wide // 4, high // 4),
        (3 * wide // 4, high // 4),
        (wide // 4, 3 * high // 4),
        (3 * wide // 4, 3 * high // 4),
    ]
    colours = [CORNERS.reshape(4, 3)[corner] for corner in TURNS[orientation]]
    for at, colour in zip(middles, colours, strict=True):
        assert numpy.abs(numpy.array(seen.getpixel(at)) - colour).max() < 40
    pictures = Pictures()

    class Here:
        name = "here"

        def read_bytes(self) -> bytes:
            return data

    assert pictures.size(Here()) == seen.size


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P", "RGBA", "LA", "I;16", "YCbCr"])
def test_a_picture_of_one_pixel(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    data = encoded(PIL.Image.new(mode, (1, 1)), kind)
    assert decode(data).size == (1, 1)
    for resize in ("squash", "crop", "pad"):
        assert prepare(data, ImageSpec(size_px=16, tokens=4, resize=resize)).shape == (3, 16, 16)


def png(width: int, height: int) -> bytes:
    """A few bytes that claim a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff,"
        + struct.pack("<HHHH", 0, 0, width, height)
        + b"\0\x02\x02D\x01\0;"
    )


@pytest.mark.parametrize("data", [png(100_000, 100_000), png(2**31 - 1, 1), gif(65535, 65535), png(0, 0)])
def test_a_bomb_takes_no_memory(data: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        with pytest.raises(PictureError):
            decode(data)
        with pytest.raises(PictureError):
            prepare_into(room(1, 16)[0], data, SPEC)
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


CLIMBING = ["../secret.png", "../../secret.png", "a/../../secret.png", "images/../../secret.png", "./../secret.png"]


@pytest.mark.parametrize(
    "given", [*CLIMBING, "/{root}/secret.png", "..", ".", "", "a\0b", "\ud800", "file:///{root}/secret.png"]
)
def test_no_name_climbs_out_of_its_folder(given: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(FILES["png"])
    name = given.replace("{root}", str(tmp_path).lstrip("/"))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    said = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "x"}]
    shown = {"image_name": name, "raw_url": name, "matched_text_index": 0, "matched_sim": 0.3}
    rows: dict[str, tuple[Any, dict[str, Any]]] = {
        "a.jsonl": (Captions, {"image": name, "captions": ["x"]}),
        "b.jsonl": (Interleaved, {"items": [{"type": "text", "text": "x"}, {"type": "image", "image": name}]}),
        "c.jsonl": (Conversations, {"image": name, "conversations": turns}),
        "d.jsonl": (Messages, {"messages": said, "images": [name]}),
        "e.jsonl": (MMC4, {"text_list": ["x"], "image_info": [shown], "similarity_matrix": [[0.3]]}),
    }
    for file, (reader, row) in rows.items():
        (inside / file).write_bytes(json_lines([row]))
        (found,) = reader(inside / file).drafts()
        pictures = [] if isinstance(found, Rejection) else list(found.pictures)
        for place in pictures:
            with pytest.raises(OSError):  # noqa: PT011  (not there, or no file)
                place.read_bytes()
        assert isinstance(found, Draft | Rejection)
    for store in (NamedPictures(inside), HashedPictures(inside), NamedPictures(inside, template="x/../{name}")):
        found_place = store.find(name)
        assert found_place is None
