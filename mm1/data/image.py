"""From the bytes of a picture's file to the square that an encoder sees, still uint8: floats are made on the device.

Resizing follows open_clip's transforms (``open_clip.transform.image_transform``), pixel by pixel.

Shards hold pictures at the model's size, so while training nearly all of them are plain JPEGs of just that size. For
these :func:`prepare_into` has a short way: libjpeg-turbo, through simplejpeg, writes straight into the batch's memory
and no pixel is moved again. PIL with its libjpeg-turbo decodes to the same values, but fills a picture of its own with
four bytes a pixel, from which numpy copies, torch turns channels first and the batch stacks: together half as long
as the decoding. simplejpeg is 1 MB without dependencies. Whatever is not plain, or not quite whole, goes to PIL, which
alone decides what is a picture.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Literal

import numpy
import PIL.Image
import PIL.ImageOps
import simplejpeg
import torch
from torch import Tensor

from mm1.batch import ImageSpec
from mm1.errors import UserError
from mm1.sample import Image, Part

MAX_PIXELS = 64_000_000  # a bound before decoding: a file of some kB can claim gigabytes
FILTERS = {"bicubic": PIL.Image.Resampling.BICUBIC, "bilinear": PIL.Image.Resampling.BILINEAR}


class PictureError(UserError):
    """A picture that cannot be read. Its message is the reason alone, the same for all such pictures, to be counted."""


def prepare(picture: bytes | Image, spec: ImageSpec) -> Tensor:
    """A picture, or the part of it that is seen, as uint8[3, S, S] with S = ``spec.size_px``.

    Raises:
        PictureError: The bytes are no picture that can be decoded.
    """
    if isinstance(picture, bytes):
        return square(decode(picture), spec)
    if picture.part is None:
        return square(decode(picture.data), spec)
    whole = _laid_out(picture.data, picture.part.rows, picture.part.columns, spec)
    return _channels_first(field_of(whole, picture.part))


@lru_cache(maxsize=16)  # the fields of a picture are asked for one after the other
def _laid_out(data: bytes, rows: int, columns: int, spec: ImageSpec) -> PIL.Image.Image:
    return lay_out(decode(data), rows, columns, spec)


def lay_out(picture: PIL.Image.Image, rows: int, columns: int, spec: ImageSpec) -> PIL.Image.Image:
    """A picture at the size of ``rows`` x ``columns`` fields, enlarged if it is smaller, by ``spec.resize``."""
    size = columns * spec.size_px, rows * spec.size_px
    return _filled(scale(picture, size, spec.resize, spec.interpolation), size, spec)


def field_of(whole: PIL.Image.Image, part: Part) -> PIL.Image.Image:
    """One field of a picture that was laid out."""
    width, height = whole.width // part.columns, whole.height // part.rows
    left, top = part.column * width, part.row * height
    return whole.crop((left, top, left + width, top + height))


def room(images: int, size_px: int, memory: numpy.ndarray | None = None) -> numpy.ndarray:
    """A place for the pictures of a batch, uint8[I, S, S, 3], the order that decoders write.

    Args:
        images: I.
        size_px: S.
        memory: uint8[at least I x S x S x 3] to use; new memory if not given.
    """
    shape, size = (images, size_px, size_px, 3), images * size_px * size_px * 3
    return numpy.empty(shape, numpy.uint8) if memory is None else memory[:size].reshape(shape)


def channels_first(images_ISSC: numpy.ndarray) -> Tensor:
    """The same memory as uint8[I, 3, S, S], as batches have it; a device puts it in order at no cost to speak of."""
    return torch.from_numpy(images_ISSC).permute(0, 3, 1, 2)


def prepare_into(into_SSC: numpy.ndarray, data: bytes, spec: ImageSpec) -> None:
    """The same pixels as :func:`prepare`, written to a place in a batch's memory (:func:`room`).

    Raises:
        PictureError: The bytes are no picture that can be decoded; what then stands in the place is undefined.
    """
    if not _decoded_into(into_SSC, data):
        into_SSC[:] = prepare(data, spec).permute(1, 2, 0).numpy()


def square(picture: PIL.Image.Image, spec: ImageSpec) -> Tensor:
    """A decoded picture as uint8[3, S, S]."""
    return _channels_first(lay_out(picture, 1, 1, spec))


def _channels_first(picture: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()


def _filled(picture: PIL.Image.Image, size: tuple[int, int], spec: ImageSpec) -> PIL.Image.Image:
    if picture.size == size:
        return picture
    return PIL.ImageOps.pad(picture, size, color=tuple(round(255 * channel) for channel in spec.mean))


def decode(data: bytes) -> PIL.Image.Image:
    """The picture as it is meant to be seen: turned by its EXIF tag, RGB, transparency on white, the first frame.

    Raises:
        PictureError: The bytes are no picture, are cut short, or claim more than ``MAX_PIXELS``.
    """
    try:
        picture = PIL.Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"picture of more than {MAX_PIXELS // 10**6} megapixels")
        return upright(picture)
    except PIL.Image.DecompressionBombError:
        raise PictureError(f"picture of more than {MAX_PIXELS // 10**6} megapixels") from None
    except PictureError:
        raise
    except Exception:  # PIL's plugins raise whatever a broken file makes them raise: OSError, SyntaxError, struct.error
        raise PictureError("picture does not decode") from None


def upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """An opened picture as it is meant to be seen."""
    picture.load()
    return _rgb(PIL.ImageOps.exif_transpose(picture))


def scale(
    picture: PIL.Image.Image,
    size_px: int | tuple[int, int],
    resize: Literal["squash", "crop", "pad"],
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
) -> PIL.Image.Image:
    """The picture at the model's resolution: a square, or of some width and height; for ``pad`` as large as fits in.

    A picture that has its size already comes back untouched, so that shards stored at model resolution cost no resize.

    Raises:
        PictureError: ``crop`` would make more than ``MAX_PIXELS`` of it.
    """
    across, down = size_px if isinstance(size_px, tuple) else (size_px, size_px)
    width, height = picture.size
    if resize == "squash":
        return _resized(picture, across, down, interpolation)
    if resize == "pad":
        ratio = min(across / width, down / height)
        return _resized(picture, max(1, round(width * ratio)), max(1, round(height * ratio)), interpolation)
    if across * height >= down * width:  # too tall
        covering = across, int(across * height / width)
    else:
        covering = int(down * width / height), down
    if covering[0] * covering[1] > MAX_PIXELS:
        raise PictureError("picture too long and thin")
    picture = _resized(picture, *covering, interpolation)
    left, top = round((picture.width - across) / 2), round((picture.height - down) / 2)
    return picture.crop((left, top, left + across, top + down)) if picture.size != (across, down) else picture


def _resized(picture: PIL.Image.Image, width: int, height: int, interpolation: str) -> PIL.Image.Image:
    return picture if picture.size == (width, height) else picture.resize((width, height), FILTERS[interpolation])


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # 16 bits a channel; PIL's own conversion clips instead of scaling
        return PIL.Image.fromarray((numpy.asarray(picture).astype(numpy.int64) >> 8).astype(numpy.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = PIL.Image.new("RGBA", picture.size, "white")
    return PIL.Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _decoded_into(into_SSC: numpy.ndarray, data: bytes) -> bool:
    """Whether ``data`` was a whole plain JPEG of just that size and now stands in ``into_SSC``."""
    if _size_of_plain_jpeg(data) != into_SSC.shape[:2]:
        return False
    try:
        simplejpeg.decode_jpeg(data, "RGB", buffer=into_SSC)
    except ValueError:  # cut short, or a warning that PIL would overlook
        return False
    return True


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of one or three colours, if nothing before its first scan says how to turn it.

    That would be EXIF or XMP, segments APP1. Reading the few heads of segments here is faster than asking a library.
    """
    size, place = None, 2
    try:
        while data[0] == 0xFF and data[1] == 0xD8 and data[place] == 0xFF:
            marker = data[place + 1]
            if marker in _FRAMES:
                height, width, colours = struct.unpack_from(">HHB", data, place + 5)
                size = (height, width) if colours in (1, 3) and size is None else (0, 0)
            elif marker in (_SCAN, _APP1):
                return size if marker == _SCAN else None
            place += 2 + 256 * data[place + 2] + data[place + 3]
    except (IndexError, struct.error):
        pass
    return None


_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; other kinds go to PIL
_SCAN, _APP1 = 0xDA, 0xE1
