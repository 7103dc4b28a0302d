"""Train and test worlds stay apart, and a scene is a value."""

from random import Random

import pytest

from data_pipelines.scenes.documents import made_up_words
from data_pipelines.scenes.world import LAYOUT_WEIGHTS, chance_of, from_dict, sample


def many(world, count=400):
    return [sample(chance_of(seed, "here", i), world) for seed in (0, 1) for i in range(count // 2)]


def test_no_meaning_is_in_both_worlds():
    train, test = ({scene.meaning for scene in many(world)} for world in ("train", "test"))
    assert len(train) > 150
    assert len(test) > 100
    assert not train & test


def test_the_look_does_not_decide_the_world():
    for scene in many("test", 60):
        assert type(scene)(scene.layout, scene.things, scene.look + 1).world == "test"


@pytest.mark.parametrize("layout", LAYOUT_WEIGHTS)
def test_both_worlds_have_every_layout(layout):
    for world in ("train", "test"):
        scene = sample(Random(5), world, layout)
        assert (scene.layout, scene.world) == (layout, world)


def test_a_scene_comes_back_from_its_plain_values():
    for scene in many("train", 40):
        assert from_dict(scene.as_dict()) == scene


def test_pairs_and_trios_have_distinct_shapes_and_colours():
    for scene in many("train"):
        if scene.layout in ("pair", "trio"):
            assert len({thing.kind for thing in scene.things}) == len(scene.things)
            assert len({thing.colour for thing in scene.things}) == len(scene.things)


def test_made_up_words_of_the_worlds_differ():
    train, test = (set(made_up_words(Random(0), world, 300)) for world in ("train", "test"))
    assert len(train) == len(test) == 300
    assert not train & test
