"""A corpus of captions with the entropy of photographs: their spectrum falls as 1/f (Field 1987), so JPEG pays as much.

Flat drawings decode far faster than what people train on, noise far slower. Strength varies from picture to picture as
contrast does in photographs; at 378 px a file as our shards store it (quality 92, full colour) has some 50 kB.
"""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy
import PIL.Image
from tqdm import trange

QUALITY = 92  # as mm1-data shards stores pictures
ROUGHNESS = 1.65  # exponent of 1/f amplitudes
WORDS = ["".join(word) for word in itertools.product("bdfgklmnprst", "aeiou", "lmnrst", "aeo")][::2]  # 540 words


def write_photos(folder: Path, pictures: int, size_px: int, words: int = 24) -> Path:
    """Write ``folder/captions`` as docs/data.md lays it out; what is there already stays.

    Args:
        folder: Raw corpus folder.
        pictures: How many.
        size_px: Side.
        words: Words of a caption; each becomes about one token.
    """
    rows = folder / "captions" / "photos.jsonl"
    if rows.exists():
        return folder
    images = folder / "captions" / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in trange(pictures, desc="photographs", mininterval=1.0):
        chance = numpy.random.default_rng(number)
        name = f"images/{number:06d}.jpg"
        (images / Path(name).name).write_bytes(_jpeg(_photo(chance, size_px)))
        caption = " ".join(WORDS[place % len(WORDS)] for place in chance.zipf(1.3, words))
        lines.append(json.dumps({"image": name, "captions": [caption]}))
    rows.write_text("\n".join(lines) + "\n")
    return folder


def _photo(chance: numpy.random.Generator, size_px: int) -> PIL.Image.Image:
    """Coloured 1/f noise; the three colours share most of it, as light and shade do."""
    frequency = numpy.hypot(numpy.fft.fftfreq(size_px)[:, None], numpy.fft.rfftfreq(size_px)[None])
    amplitude = 1 / numpy.maximum(frequency, 1 / size_px) ** ROUGHNESS
    shape = (4, *amplitude.shape)
    spectrum = amplitude * numpy.exp(2j * numpy.pi * chance.random(shape))
    shade, *colours = numpy.fft.irfft2(spectrum, (size_px, size_px))
    picture = numpy.stack([shade + 0.35 * colour for colour in colours], axis=-1)
    contrast = chance.uniform(35, 75)
    return PIL.Image.fromarray((127 + contrast * picture / picture.std()).clip(0, 255).astype(numpy.uint8))


def _jpeg(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
