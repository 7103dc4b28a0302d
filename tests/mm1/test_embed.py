"""Vectors of CLIP are open_clip's, and those of pictures are kept by content, whatever a kill left of their file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import open_clip
import PIL.Image
import pytest
import torch

from mm1.embed import Clip, Kept
from tests.clips import NAME, tiny_clip

PICTURES = {
    hashlib.sha256(f"{at}".encode()).digest(): PIL.Image.effect_noise((40, 30), 10 * at + 5).convert("RGB")
    for at in range(5)
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(weights: Path) -> Clip:
    return Clip(NAME, weights=weights)


def test_vectors_are_open_clips(clip: Clip, weights: Path) -> None:
    model, prepare = open_clip.create_model_from_pretrained(NAME, pretrained=str(weights))
    pictures = list(PICTURES.values())
    with torch.no_grad():
        images_IV = model.eval().encode_image(torch.stack([prepare(picture) for picture in pictures]))
        texts_SV = model.encode_text(open_clip.get_tokenizer(NAME)(["a cat", "two dogs", "x"]))
    norm = torch.nn.functional.normalize
    torch.testing.assert_close(clip.pictures(pictures), norm(images_IV, dim=-1))
    torch.testing.assert_close(clip.texts(["a cat", "two dogs", "x"], batch=2), norm(texts_SV, dim=-1))


def test_what_was_seen_is_not_looked_at_again(clip: Clip, tmp_path: Path) -> None:
    names, told = list(PICTURES), []
    first = Kept(tmp_path, clip).of(names[:3], PICTURES.__getitem__, batch=2, done=told.append)
    assert told == [0, 2, 1]
    looked: list[bytes] = []

    def look(name: bytes) -> PIL.Image.Image:
        looked.append(name)
        return PICTURES[name]

    every = Kept(tmp_path, clip).of([*names, names[1]], look)
    assert looked == names[3:]
    numpy.testing.assert_array_equal(every[:3], first)
    numpy.testing.assert_array_equal(every[-1], every[1])
    numpy.testing.assert_allclose(every[:5], clip.pictures(list(PICTURES.values())), atol=1e-6)


@pytest.mark.parametrize("left", [2, 4, 60, 4 + 2 * 128 + 17])
def test_a_record_cut_short_is_written_over(clip: Clip, tmp_path: Path, left: int) -> None:
    names = list(PICTURES)
    whole = Kept(tmp_path, clip).of(names, PICTURES.__getitem__)
    [path] = tmp_path.iterdir()
    assert path.stat().st_size == 4 + 5 * (32 + 4 * 24)
    with path.open("r+b") as file:
        file.truncate(left)
    numpy.testing.assert_array_equal(Kept(tmp_path, clip).of(names, PICTURES.__getitem__).shape, whole.shape)
    assert path.stat().st_size == 4 + 5 * (32 + 4 * 24)

    def never(name: bytes) -> PIL.Image.Image:
        raise AssertionError("all are kept by now")

    numpy.testing.assert_allclose(Kept(tmp_path, clip).of(names, never), whole, atol=1e-6)


def test_other_weights_have_vectors_of_their_own(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Clip(NAME, weights=tiny_clip(tmp_path / "other", seed=1))
    names = list(PICTURES)
    vectors = [Kept(tmp_path / "kept", one).of(names, PICTURES.__getitem__) for one in (clip, other)]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert numpy.abs(vectors[0] - vectors[1]).max() > 0.1
