"""Crops keep what they promise, mirrors stay in their streams, and a seed decides everything."""

from __future__ import annotations

import numpy
import PIL.Image
import PIL.ImageOps
import pytest

from mm1.data.augment import Augment
from mm1.errors import UserError

RAMP = PIL.Image.fromarray(numpy.arange(60 * 40 * 3, dtype=numpy.uint8).reshape(40, 60, 3))


def test_the_default_changes_nothing() -> None:
    assert Augment()(RAMP, "captions", "seed").tobytes() == RAMP.tobytes()


def test_a_crop_keeps_its_share_and_its_aspect() -> None:
    crops = [Augment(area=0.5, stretch=1.25)(RAMP, "captions", str(n)).size for n in range(200)]
    shares = [width * height / (60 * 40) for width, height in crops]
    assert min(shares) > 0.45
    assert max(shares) > 0.9
    aspects = [width / height / 1.5 for width, height in crops]
    assert 0.75 < min(aspects) < 0.9
    assert 1.1 < max(aspects) < 1.33
    assert len(set(crops)) > 50


def test_only_named_streams_are_mirrored_and_half_of_the_time() -> None:
    mirrored = PIL.ImageOps.mirror(RAMP).tobytes()
    seen = [Augment(mirror=("captions",))(RAMP, "captions", str(n)).tobytes() for n in range(200)]
    assert 70 < seen.count(mirrored) < 130
    assert set(seen) == {mirrored, RAMP.tobytes()}
    assert all(Augment(mirror=("captions",))(RAMP, "vqa", str(n)).tobytes() == RAMP.tobytes() for n in range(50))


def test_the_seed_decides() -> None:
    augment = Augment(area=0.5, stretch=1.2, mirror=("captions",))
    assert augment(RAMP, "captions", "a").tobytes() == augment(RAMP, "captions", "a").tobytes()
    assert len({augment(RAMP, "captions", str(n)).tobytes() for n in range(20)}) > 15


@pytest.mark.parametrize("wrong", [{"area": 0.0}, {"area": 1.1}, {"stretch": 0.9}])
def test_numbers_that_cannot_be_meant(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"data\.augment\.\w+ is .*; expected"):
        Augment(**wrong)
