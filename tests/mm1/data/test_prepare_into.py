"""The short way of stored JPEGs: pixel by pixel what PIL makes of them, and PIL wherever a file is not plain."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1.batch import ImageSpec
from mm1.data import image
from mm1.data.image import PictureError, channels_first, prepare, prepare_into, room

DATA = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
SIDE = 33  # no multiple of a JPEG block


def photo(mode: str = "RGB", side: int = SIDE, seed: int = 0) -> PIL.Image.Image:
    """Smooth colours with some noise."""
    noise = numpy.random.default_rng(seed).integers(0, 60, (side, side, 3))
    ramp = numpy.linspace(0, 190, side)[None, :, None] * numpy.array([1.0, 0.5, 0.8])
    return PIL.Image.fromarray((noise + ramp).astype(numpy.uint8)).convert(mode)


def encoded(picture: PIL.Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def spec_of(side: int) -> ImageSpec:
    return ImageSpec(size_px=side, tokens=4)


def both_ways(data: bytes, side: int = SIDE) -> torch.Tensor:
    """The picture by the short way, after comparing with the long one."""
    place_ISSC = room(1, side)
    prepare_into(place_ISSC[0], data, spec_of(side))
    found_CSS = channels_first(place_ISSC)[0]
    assert torch.equal(found_CSS, prepare(data, spec_of(side)))
    return found_CSS


@pytest.fixture
def no_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks PIL fails."""

    def refused(*_: object) -> None:
        raise AssertionError("PIL was asked")

    monkeypatch.setattr(PIL.Image, "open", refused)


@pytest.mark.parametrize("side", [1, 2, 8, 15, 33, 64])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [30, 92])
def test_stored_jpegs_have_the_pixels_of_pil(
    side: int, mode: str, subsampling: int, progressive: bool, quality: int
) -> None:
    options = {"subsampling": subsampling, "progressive": progressive, "quality": quality}
    both_ways(encoded(photo(mode, side), **options), side)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real pictures in {DATA}")
def test_real_photographs_have_the_pixels_of_pil() -> None:
    files = sorted(DATA.glob("captions/**/*.jpg"))
    chosen = random.Random(0).sample(files, min(150, len(files)))
    assert chosen
    for number, path in enumerate(chosen):
        picture = PIL.Image.open(path).convert("RGB").resize((98, 98))
        both_ways(encoded(picture, quality=60 + number % 36, subsampling=number % 3), 98)


@pytest.mark.usefixtures("no_pil")
def test_a_plain_jpeg_of_its_size_never_meets_pil() -> None:
    prepare_into(room(1, SIDE)[0], encoded(photo()), spec_of(SIDE))


def test_pictures_stand_in_the_memory_that_was_given() -> None:
    memory = numpy.zeros(4 * 3 * SIDE * SIDE, numpy.uint8)
    places_ISSC = room(2, SIDE, memory)
    for place_SSC, seed in zip(places_ISSC, (1, 2), strict=True):
        prepare_into(place_SSC, encoded(photo(seed=seed)), spec_of(SIDE))
    found_ICHW = channels_first(places_ISSC)
    assert found_ICHW.shape == (2, 3, SIDE, SIDE)
    assert found_ICHW.data_ptr() == memory.ctypes.data
    assert torch.equal(found_ICHW[1], prepare(encoded(photo(seed=2)), spec_of(SIDE)))
    assert not memory[2 * 3 * SIDE * SIDE :].any()


EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6  # to be turned by 90 degrees
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(photo(), exif=EXIF), id="turned by EXIF"),
        pytest.param(encoded(photo(), xmp=XMP), id="turned by XMP"),
        pytest.param(encoded(photo("CMYK")), id="CMYK"),
        pytest.param(encoded(photo(side=50)), id="another size"),
        pytest.param(encoded(photo(), "PNG"), id="PNG"),
        pytest.param(encoded(photo(), "WEBP"), id="WebP"),
        pytest.param(encoded(photo(), comment=b"\xff\xda" * 9), id="a comment like a scan"),
        pytest.param(encoded(photo(), icc_profile=b"\xff\xe1" * 40_000), id="a long profile"),
        pytest.param(b"\xff\xd8" + b"\xff\xff" + encoded(photo())[3:], id="fill bytes"),
        pytest.param(encoded(photo())[:-2] + b"\0" * 9 + b"\xff\xd9", id="bytes behind the picture"),
        pytest.param(encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=1)]), id="animated GIF"),
        pytest.param(encoded(photo(), "MPO", save_all=True, append_images=[photo(seed=1)]), id="several in a file"),
    ],
)
def test_what_is_not_plain_is_what_pil_makes_of_it(data: bytes) -> None:
    both_ways(data)


def test_a_turned_picture_is_turned() -> None:
    upright, turned = encoded(photo()), encoded(photo(), exif=EXIF)
    assert torch.equal(both_ways(turned), torch.rot90(both_ways(upright), -1, (1, 2)))


WHOLE = encoded(photo(side=64))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", WHOLE[:30], WHOLE[: len(WHOLE) // 2], WHOLE[2:]])
def test_a_broken_jpeg_says_so(data: bytes) -> None:
    with pytest.raises(PictureError, match="does not decode"):
        prepare_into(room(1, 64)[0], data, spec_of(64))


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_PIXELS", 1000)
    with pytest.raises(PictureError, match="megapixels"):
        prepare_into(room(1, SIDE)[0], WHOLE, spec_of(SIDE))
    claims = bytearray(WHOLE)  # a head that claims 65500 x 65500 before the same few bytes
    at = claims.index(b"\xff\xc0") + 5
    claims[at : at + 4] = (65500).to_bytes(2, "big") * 2
    with pytest.raises(PictureError, match="megapixels"):
        prepare_into(room(1, SIDE)[0], bytes(claims), spec_of(SIDE))


@given(
    cut=st.none() | st.integers(0, len(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    head=st.booleans(),
)
def test_a_mutated_jpeg_is_what_pil_makes_of_it_or_refused(
    cut: int | None, changes: list[tuple[int, int]], head: bool
) -> None:
    data = bytearray(WHOLE[:cut])
    for place, value in changes:
        if (place := place % 620 if head else place) < len(data):
            data[place] = value
    place_ISSC = room(1, 64)
    try:
        wanted = prepare(bytes(data), spec_of(64))
    except PictureError:
        with pytest.raises(PictureError):
            prepare_into(place_ISSC[0], bytes(data), spec_of(64))
    else:
        prepare_into(place_ISSC[0], bytes(data), spec_of(64))
        assert torch.equal(channels_first(place_ISSC)[0], wanted)
