"""A copy is found whatever was done to its file; a different picture of the same layout is not."""

from __future__ import annotations

import io

import numpy
import PIL.Image
import PIL.ImageDraw

from mm1.data.fingerprint import Fingerprint, Known, fingerprint


def of(picture: PIL.Image.Image, quality: int = 90) -> Fingerprint:
    """The fingerprint of a picture saved as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return fingerprint(file.getvalue(), PIL.Image.open(file).convert("RGB"))


def landscape(seed: int) -> PIL.Image.Image:
    """Soft blobs of colour, as far as a photograph goes without one."""
    coarse = numpy.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=numpy.uint8)
    return PIL.Image.fromarray(coarse).resize((320, 240), PIL.Image.Resampling.BICUBIC)


def drawing(colour: str, left: int) -> PIL.Image.Image:
    canvas = PIL.Image.new("RGB", (64, 64), "white")
    PIL.ImageDraw.Draw(canvas).ellipse((left, 20, left + 20, 40), fill=colour)
    return canvas


def test_a_copy_is_found_after_resizing_and_recompressing() -> None:
    known = Known(of(landscape(seed)) for seed in range(40))
    for seed in range(40):
        assert of(landscape(seed).resize((224, 224)), quality=60) in known
        assert of(landscape(seed).resize((160, 120)), quality=40) in known
    assert not any(of(landscape(seed)) in known for seed in range(40, 140))


def test_the_same_file_is_found_by_content() -> None:
    picture = drawing("red", 10)
    one = fingerprint(b"file", picture)
    assert one in Known([one])
    assert fingerprint(b"file", landscape(0)) in Known([one])


def test_drawings_that_differ_in_a_detail_are_different() -> None:
    known = Known([of(drawing("red", 10))])
    assert of(drawing("red", 10), quality=60) in known
    assert of(drawing("blue", 10)) not in known
    assert of(drawing("red", 15)) not in known


def test_nothing_is_in_an_empty_set() -> None:
    assert of(landscape(0)) not in Known([])
    assert len(Known([])) == 0
    assert len(Known([of(landscape(0))])) == 1


def test_all_that_show_the_same_picture_are_named() -> None:
    one, other = of(landscape(1)), of(landscape(2))
    known = Known([one, other, of(landscape(1).resize((160, 120)))])
    assert known.alike(of(landscape(1), quality=60)) == [0, 2]
    assert known.alike(one) == [0, 2]
    assert known.alike(of(landscape(3))) == []
    assert Known([]).alike(one) == []
