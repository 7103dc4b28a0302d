"""Pictures as open_clip prepares them, and every kind of file that people have."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy
import open_clip
import PIL.Image
import pytest
import torch

from mm1.batch import ImageSpec
from mm1.data import image
from mm1.data.image import PictureError, decode, prepare, scale

SPEC = ImageSpec(size_px=32, tokens=4)


def photo(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    """Smooth colours with some noise, from a fixed seed."""
    noise = numpy.random.default_rng(0).integers(0, 60, (height, width, 3))
    ramp = numpy.linspace(0, 190, width)[None, :, None] * numpy.array([1.0, 0.5, 0.8])
    return PIL.Image.fromarray((noise + ramp).astype(numpy.uint8)).convert(mode)


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (20, 17), (33, 32), (100, 100)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize", "theirs"), [("squash", "squash"), ("crop", "shortest"), ("pad", "longest")])
def test_pictures_are_what_open_clip_makes_of_them(
    size: tuple[int, int], interpolation: str, resize: str, theirs: str
) -> None:
    spec = ImageSpec(size_px=32, tokens=4, resize=resize, interpolation=interpolation)
    transform = open_clip.transform.image_transform(
        32,
        is_train=False,
        mean=spec.mean,
        std=spec.std,
        resize_mode=theirs,
        interpolation=interpolation,
        fill_color=tuple(round(255 * channel) for channel in spec.mean),
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    ours = (prepare(encoded(photo(*size)), spec) / 255 - mean) / std
    torch.testing.assert_close(ours, transform(photo(*size)), atol=1e-5, rtol=0)


def test_the_result_is_uint8_channels_first() -> None:
    tensor = prepare(encoded(photo(40, 30)), SPEC)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 32, 32)
    assert tensor.is_contiguous()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_a_picture_at_model_resolution_is_not_touched(resize: str) -> None:
    stored = scale(photo(80, 50), 32, resize)
    assert scale(stored, 32, resize) is stored
    whole = ImageSpec(size_px=32, tokens=4, resize=resize)
    assert torch.equal(prepare(encoded(stored), whole), prepare(encoded(photo(80, 50)), whole))


def test_pictures_are_turned_by_their_exif_tag() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = decode(encoded(photo(40, 20), "JPEG", exif=exif))
    assert turned.size == (20, 40)


def test_transparency_is_flattened_on_white() -> None:
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(clear)).getpixel((3, 3)) == (255, 255, 255)
    palette = PIL.Image.new("P", (8, 8), 0)
    assert decode(encoded(palette, transparency=0)).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = PIL.Image.fromarray(numpy.full((8, 8), 0x8000, dtype=numpy.uint16))
    assert decode(encoded(deep)).getpixel((3, 3)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("RGB", "WEBP"), ("LA", "PNG")]
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    assert decode(encoded(photo(9, 7, mode), kind)).mode == "RGB"


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data", [b"", b"no picture", encoded(photo(90, 90), "JPEG")[:400], encoded(photo(90, 90))[:300]]
)
def test_a_broken_file_says_so(data: bytes) -> None:
    with pytest.raises(PictureError, match="does not decode"):
        prepare(data, SPEC)


def test_a_thread_is_not_cropped_to_gigabytes() -> None:
    thread = encoded(PIL.Image.new("L", (60_000, 1)))
    with pytest.raises(PictureError, match="too long and thin"):
        prepare(thread, replace(SPEC, size_px=64, resize="crop"))
    assert prepare(thread, replace(SPEC, size_px=64, resize="pad")).shape == (3, 64, 64)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_PIXELS", 1000)
    header_only = encoded(photo(90, 90))[:60]  # decoding this would fail in another way
    with pytest.raises(PictureError, match="megapixels"):
        decode(header_only)
    giant = encoded(PIL.Image.new("1", (20_000, 20_000)))
    with pytest.raises(PictureError, match="megapixels"):
        decode(giant)
