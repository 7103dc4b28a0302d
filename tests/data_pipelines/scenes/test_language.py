"""What is said about a scene is true: captions and answers are worked out again from where things stand."""

import re
from collections import Counter, defaultdict

import pytest

from data_pipelines.scenes.draw import spots
from data_pipelines.scenes.language import captions
from data_pipelines.scenes.questions import choose, questions, ten_answers
from data_pipelines.scenes.world import COLOURS, SHAPES, chance_of, sample

BEFORE = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}
AT = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}


class Oracle:
    """Answers a question from kinds, colours and coordinates, knowing nothing of how it was made."""

    def __init__(self, scene):
        self.things = [(t, (spot.x - 0.5, spot.y - 0.5)) for t, spot in zip(scene.things, spots(scene), strict=True)]

    def answer(self, text):
        for pattern, method in self.PATTERNS.items():
            if match := re.fullmatch(pattern, text):
                return method(self, *match.groups())
        raise AssertionError(f"a question nobody knows: {text}")

    def one(self, wanted):
        found = [thing for thing, _ in self.things if wanted(thing)]
        assert len({(thing.kind, thing.colour, thing.text) for thing in found}) == 1
        return found[0]

    def named(self, name):
        return self.one(lambda thing: name in (thing.kind, thing.kind + "s", thing.kind + "es", thing.colour))

    def at(self, where):
        if where == "in the middle":
            return min(self.things, key=lambda pair: abs(pair[1][0]) + abs(pair[1][1]))[0]
        axis, sign = AT[where]
        return max(self.things, key=lambda pair: sign * pair[1][axis])[0]

    def related(self, relation, name):
        axis, sign = BEFORE[relation]
        (anchor,) = [place for thing, place in self.things if thing.kind == name]
        (found,) = [thing for thing, place in self.things if sign * (anchor[axis] - place[axis]) > 0.1]
        return found

    def where(self, name):
        ((x, y),) = [place for thing, place in self.things if thing.kind == name]
        if max(abs(x), abs(y)) < 0.1:
            return "middle"
        if abs(x) > abs(y):
            return "left" if x < 0 else "right"
        return "top" if y < 0 else "bottom"

    def largest(self):
        return max(self.things, key=lambda pair: ("small", "medium", "large").index(pair[0].size))[0].kind

    def said(self, truth):
        return "yes" if truth else "no"

    PATTERNS = {
        r"(?:What|Which) colour is the shape (on the left|on the right|at the top|at the bottom|in the middle)\?": (
            lambda self, where: self.at(where).colour
        ),
        r"(?:What|Which) shape is (on the left|on the right|at the top|at the bottom|in the middle)\?": (
            lambda self, where: self.at(where).kind
        ),
        r"(?:What|Which) colour (?:is|are) the (\w+)\?": lambda self, name: self.named(name).colour,
        r"(?:What shape is larger|Which shape is large)\?": lambda self: self.largest(),
        r"What shape (?:is this|do you see)\?": lambda self: self.one(lambda thing: True).kind,
        r"(?:What|Which) shape is (\w+)\?": lambda self, colour: self.named(colour).kind,
        r"What is (to the left of|to the right of|above|below) the (\w+)\?": (
            lambda self, relation, name: self.related(relation, name).kind
        ),
        r"Where (?:is|do you see) the (\w+)\?": lambda self, name: self.where(name),
        r"How many \w+ are there\?": lambda self: str(len(self.things)),
        r"(?:What (?:number|word) is this|Which (?:number|word) is written)\?": lambda self: self.things[0][0].text,
        r"Is the (\w+) large or small\?": lambda self, name: self.named(name).size,
        r"Is the (\w+) (\w+)\?": lambda self, name, colour: self.said(self.named(name).colour == colour),
        r"Is there an? (\w+) (\w+)\?": lambda self, colour, kind: self.said(
            any((thing.colour, thing.kind) == (colour, kind) for thing, _ in self.things)
        ),
    }


def scenes(count, world="train"):
    return [sample(chance_of(3, "said", i), world) for i in range(count)]


def test_every_answer_is_right():
    kinds = Counter()
    for i, scene in enumerate(scenes(600)):
        for question in questions(scene, chance_of(0, "asked", i)):
            assert Oracle(scene).answer(question.text) == question.answer, (scene, question)
            kinds[question.kind] += 1
    assert set(kinds) >= {"what colour", "what shape", "what number", "what word", "how many", "where is", "is there"}


def test_captions_name_everything_and_nothing_else():
    for scene in scenes(300):
        said = captions(scene)
        assert len(set(said)) == 5
        for caption in said:
            words = re.findall(r"\w+", caption)
            assert {word for word in words if word in COLOURS} == {thing.colour for thing in scene.things}
            shapes = {shape for shape in SHAPES for word in words if word in (shape, shape + "s", shape + "es")}
            assert shapes == {thing.kind for thing in scene.things if not thing.text}
            assert all(thing.text in words for thing in scene.things if thing.text)
            assert len(words) <= 24


def test_relations_in_captions_agree_with_the_picture():
    told = 0
    for scene in scenes(300):
        for caption in captions(scene):
            match = re.search(rf"(\w+) ({'|'.join(BEFORE)}) an? \w+ \w+ (\w+)", caption)
            if match:
                first, relation, second = match.groups()
                assert Oracle(scene).related(relation, second).kind == first, (scene, caption)
                told += 1
    assert told > 100


def asked(world, count):
    for i, scene in enumerate(scenes(count, world)):
        chance = chance_of(1, f"asked {world}", i)
        yield from choose(scene, chance, most=4, either=int(chance.random() < 0.35))


def test_no_kind_of_question_has_a_favourite_answer():
    answers = defaultdict(Counter)
    for question in asked("test", 1500):
        answers["either" if question.either else question.kind][question.answer] += 1
    total = sum(map(Counter.total, answers.values()))
    assert answers.pop("either").total() < 0.15 * total
    for kind, counts in answers.items():
        assert counts.most_common(1)[0][1] / counts.total() < 0.36, (kind, counts)


def test_the_question_alone_answers_little():
    """The best a reader without eyes can do: the commonest train answer of the very same question."""
    known = defaultdict(Counter)
    for question in asked("train", 1500):
        known[question.text][question.answer] += 1
    test = list(asked("test", 700))
    right = sum(bool(known[q.text]) and known[q.text].most_common(1)[0][0] == q.answer for q in test)
    assert right / len(test) < 0.32


@pytest.mark.parametrize(("answer", "others"), [("purple", {"violet"}), ("circle", {"disc", "round"}), ("4", set())])
def test_at_least_eight_of_ten_agree(answer, others):
    rounds = [ten_answers(answer, chance_of(0, "ten", i)) for i in range(60)]
    assert all(len(answers) == 10 and answers.count(answer) >= 8 for answers in rounds)
    assert {said for answers in rounds for said in answers} == {answer, *others}
