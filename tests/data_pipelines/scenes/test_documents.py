"""Documents make sense with their pictures, and only with them."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from data_pipelines.scenes.documents import SHOT, album, changes, compare, interleaved, lesson, shots, words
from data_pipelines.scenes.language import captions
from data_pipelines.scenes.texts import conversation, quiz, text
from data_pipelines.scenes.world import Scene, chance_of, sample, world_of


def documents(make, count=150, world="train"):
    return [make(chance_of(0, "document", i), world) for i in range(count)]


def pictures(document):
    return [item for item in document if isinstance(item, Scene)]


@pytest.mark.parametrize("world", ["train", "test"])
def test_a_document_has_two_to_nine_pictures_of_its_world_and_ends_in_text(world):
    for document in documents(interleaved, world=world):
        assert 2 <= len(pictures(document)) <= 9
        assert isinstance(document[-1], str)
        assert {scene.world for scene in pictures(document)} == {world}


@pytest.mark.parametrize("world", ["train", "test"])
def test_made_up_words_are_defined_before_they_are_asked_and_fit_the_picture(world):
    for i in range(200):
        taught = lesson(chance_of(0, "taught", i), world, asked=2)
        assert len(set(taught.words)) == len(taught.shown) >= 2
        assert {world_of(word) for word in taught.words} == {world}
        for scene, word in taught.asked:
            thing = scene.things[0]
            alike = {w for s, w in taught.shown if "shape" in taught.sentence and s.things[0].kind == thing.kind}
            alike |= {w for s, w in taught.shown if "colour" in taught.sentence and s.things[0].colour == thing.colour}
            if not re.search("shape|colour", taught.sentence):
                alike = {
                    w for s, w in taught.shown if (s.things[0].kind, s.things[0].colour) == (thing.kind, thing.colour)
                }
            assert alike == {word}


def test_the_position_of_a_definition_does_not_give_the_answer_away():
    places = Counter()
    for i in range(300):
        taught = lesson(chance_of(0, "place", i), "test", asked=1)
        if len(taught.shown) == 2:
            places[taught.words.index(taught.asked[0][1])] += 1
    assert min(places.values()) > 0.4 * places.total()


def test_changes_tell_what_changed():
    for document in documents(changes):
        scenes = pictures(document)
        assert all(after.meaning != before.meaning for before, after in pairwise(scenes))
        for (before, after), told in zip(pairwise(scenes), document[3::2], strict=True):
            if "gone" in told:
                assert len(after.things) == len(before.things) - 1
            elif "there is one" in told:
                assert int(re.search(r"\d", told)[0]) == len(after.things)
            elif "places" not in told:
                word = re.findall(r"\w+", told)[-1]
                fresh = set(after.things) - set(before.things)
                assert any(word in (thing.colour, thing.size, thing.place) for thing in fresh), told


def test_comparisons_are_true():
    for document in documents(compare):
        one, two = (scene.things[0] for scene in pictures(document))
        assert ("neither" in document[-1]) == (one.kind != two.kind and one.colour != two.colour)
        assert (f"are {one.colour}" in document[-1]) == (one.colour == two.colour)
        assert (f"are {one.kind}" in document[-1]) == (one.kind == two.kind)


def test_shots_are_pictures_with_question_and_short_answer():
    pattern = re.escape(SHOT).replace(r"\{question\}", r"[^?]+\?").replace(r"\{answer\}", r"\w+")
    for document in documents(shots, 40):
        assert all(re.fullmatch(pattern, said) for said in document[1::2])


def test_albums_caption_each_picture():
    for document in documents(album, 40):
        assert all(said in captions(scene) for scene, said in zip(document[::2], document[1::2], strict=True))


def test_words_end_with_a_word_they_defined():
    for document in documents(words, 60):
        last = re.findall(r"\w+", document[-1])[-1]
        assert any(last in said for said in document[:-1] if isinstance(said, str))


def test_conversations_have_four_to_eight_turns_none_twice():
    for i in range(200):
        chance = chance_of(0, "talk", i)
        turns = conversation(sample(chance, "train"), chance)
        assert 4 <= len(turns) <= 8
        assert len({question for question, _ in turns}) == len(turns)


def test_texts_and_quizzes_are_never_empty():
    for i in range(100):
        assert len(text(chance_of(0, "text", i)).split()) >= 8
        assert all(question.endswith("?") and answer for question, answer in quiz(chance_of(0, "quiz", i)))
