"""The picture shows what the scene says: the named colours at the named places, distinct to a perceptual hash."""

import io
from dataclasses import replace

import numpy
import PIL.Image
import pytest

from data_pipelines.scenes.draw import PAPERS, RGB, draw, jpeg, spots
from data_pipelines.scenes.world import COLOURS, SHAPES, chance_of, sample
from mm1.data.fingerprint import Known, fingerprint


def scenes(world="train", count=120, part="drawn", layout=None):
    return [sample(chance_of(0, part, i), world, layout) for i in range(count)]


def decoded(scene, image_px=64):
    return PIL.Image.open(io.BytesIO(jpeg(scene, image_px))).convert("RGB")


def nearest_colour(pixel):
    return min(RGB, key=lambda colour: sum(abs(a - b) for a, b in zip(RGB[colour], pixel, strict=True)))


def test_drawing_is_a_function_of_the_scene():
    for scene in scenes(count=10):
        assert jpeg(scene) == jpeg(scene)
        other = type(scene)(scene.layout, scene.things, scene.look + 1)
        assert jpeg(other) != jpeg(scene)


@pytest.mark.parametrize("image_px", [48, 64, 378])
def test_a_picture_has_the_size_asked_for(image_px):
    assert decoded(scenes(count=1)[0], image_px).size == (image_px, image_px)


@pytest.mark.parametrize("image_px", [64, 128])
def test_every_shape_has_its_colour_in_its_middle(image_px):
    for scene in scenes():
        picture = decoded(scene, image_px)
        for thing, spot in zip(scene.things, spots(scene), strict=True):
            if thing.kind in SHAPES:
                assert (
                    nearest_colour(picture.getpixel((int(spot.x * image_px), int(spot.y * image_px)))) == thing.colour
                )


@pytest.mark.parametrize("layout", ["number", "word"])
def test_letters_are_written_in_their_colour_inside_the_picture(layout):
    for scene in scenes(layout=layout, count=60):
        pixels = numpy.asarray(draw(scene), dtype=int)
        written = (numpy.abs(pixels - RGB[scene.things[0].colour]).max(axis=2) <= 8).nonzero()
        assert len(written[0]) >= 20
        border = numpy.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        paper = numpy.min([numpy.abs(border - paper).max(axis=1) for paper in PAPERS], axis=0)
        assert (paper <= 16).mean() > 0.97, "letters run over the edge"


def test_colours_are_far_apart():
    for i, one in enumerate(COLOURS):
        for other in [RGB[name] for name in COLOURS[:i]] + list(PAPERS):
            assert sum(abs(a - b) for a, b in zip(RGB[one], other, strict=True)) >= 90


def test_shapes_differ_in_their_pixels():
    scene = scenes(layout="one", count=1)[0]
    masks = []
    for shape in SHAPES:
        thing = replace(scene.things[0], kind=shape, size="large", place="middle", colour="black")
        pixels = numpy.asarray(draw(replace(scene, things=(thing,))).convert("L"), dtype=int)
        masks.append(pixels < 120)
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one & other).sum() / (one | other).sum() < 0.85


def test_no_training_picture_is_taken_for_a_scored_one():
    """The grain keeps pictures of one shape apart; else the corpus would be dropped as near copies of the test set."""
    known = Known(fingerprint(jpeg(scene), decoded(scene)) for scene in scenes("test", 150))
    taken = sum(fingerprint(jpeg(scene), decoded(scene)) in known for scene in scenes("train", 600))
    assert taken == 0
    scene = scenes("test", 1)[0]
    assert fingerprint(jpeg(scene), decoded(scene)) in known
