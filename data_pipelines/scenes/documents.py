"""Documents of several pictures whose text only makes sense with them (MM1, section 3.3, finds few-shot skill there).

    words       <picture> This is a dako. <picture> This is a wupi. <picture> This is a dako.
    changes     <picture> First we see a red circle above a blue star. <picture> Now the circle is gone.
    compare     <picture> <picture> Both shapes are red.
    shots       <picture> Question: What shape is red? Short answer: circle <picture> Question: ...
    captions    <picture> A small red circle on the left. <picture> ...

In ``words`` the last word can be known from the earlier pictures alone, so what it scores is learning in context. The
made-up words of the test world are never those of the train world.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data_pipelines.scenes.language import WHERE, a, caption, captions, name, plural
from data_pipelines.scenes.questions import choose
from data_pipelines.scenes.world import CELLS, COLOURS, COUNTS, PLACES, Scene, World, sample, world_of

Document = list[str | Scene]

SHOT = "Question: {question} Short answer: {answer}"
TAUGHT = {
    "shape": ("This shape is called {}.", "What is this shape called?"),
    "colour": ("This colour is called {}.", "What is this colour called?"),
    "thing": ("This is a {}.", "What is this?"),
}
REAL_WORDS = frozenset({"baba", "dada", "dodo", "kiwi", "mama", "mimi", "nova", "papa", "tuba", "tutu", "vivo", "zulu"})


@dataclass(frozen=True, slots=True)
class Lesson:
    """Made-up words defined by pictures, and pictures that ask for one of them.

    Args:
        shown: The defining pictures, each with the sentence that names it.
        asked: Pictures to be named, each with the right word.
        sentence: How a word is said, with a gap for it.
        question: How a word is asked for.
    """

    shown: list[tuple[Scene, str]]
    asked: list[tuple[Scene, str]]
    sentence: str
    question: str

    @property
    def words(self) -> list[str]:
        """The words, in the order they were defined."""
        return [word for _, word in self.shown]

    def definitions(self) -> Document:
        """The defining part: picture, sentence, picture, sentence."""
        return [item for scene, word in self.shown for item in (scene, self.sentence.format(word))]


def interleaved(chance: Random, world: World) -> Document:
    """One interleaved document of 2 to 9 pictures."""
    kinds: dict[Callable[[Random, World], Document], int] = {words: 35, changes: 20, compare: 10, shots: 25, album: 10}
    return chance.choices(list(kinds), list(kinds.values()))[0](chance, world)


def lesson(chance: Random, world: World, asked: int) -> Lesson:
    """Two or three made-up words for a shape, a colour or both, then ``asked`` pictures to name."""
    what = chance.choice(list(TAUGHT))
    scenes: list[Scene] = []
    known = chance.choice((2, 2, 3))
    while len(scenes) < known:
        scene = sample(chance, world, "one")
        taken = [part for other in scenes for part in (other.things[0].kind, other.things[0].colour)]
        if scene.things[0].kind not in taken and scene.things[0].colour not in taken:
            scenes.append(scene)

    def another(scene: Scene) -> Scene:
        shape = scene.things[0].kind if what != "colour" else None
        colour = scene.things[0].colour if what != "shape" else None
        return sample(chance, world, "one", shape=shape, colour=colour)

    shown = list(zip(scenes, made_up_words(chance, world, known), strict=True))
    queries = [(another(scene), word) for scene, word in chance.choices(shown, k=asked)]
    return Lesson(shown, queries, *TAUGHT[what])


def made_up_words(chance: Random, world: World, count: int) -> list[str]:
    """Distinct words of two syllables that no dictionary has and that belong to one world."""
    found: list[str] = []
    while len(found) < count:
        word = "".join(chance.choice(letters) for letters in ("bdgkmnptvwz", "aiou", "bdgkmnptvwz", "aiou"))
        if word not in REAL_WORDS and word not in found and world_of(word) == world:
            found.append(word)
    return found


def words(chance: Random, world: World) -> Document:
    """Made-up words, defined and then used, in a sentence or as the answer to a question."""
    taught = lesson(chance, world, asked=chance.choice((1, 2)))
    as_question = chance.random() < 0.5
    told = SHOT.format(question=taught.question, answer="{}") if as_question else taught.sentence
    return [*taught.definitions(), *(item for scene, word in taught.asked for item in (scene, told.format(word)))]


def changes(chance: Random, world: World) -> Document:
    """A scene, then the same scene changed once to three times."""
    scene = sample(chance, world, chance.choice(("one", "pair", "group")))
    document: Document = [scene, f"First we see {_lower(captions(scene)[0])}"]
    for _ in range(chance.randint(1, 3)):
        fitting = [(after, told) for after, told in _changes(scene, chance) if after.world == world]
        if fitting:
            scene, told = chance.choice(fitting)
            document += [scene, f"{chance.choice(('Now', 'In the next picture'))} {told}"]
    return document if len(document) > 2 else changes(chance, world)


def compare(chance: Random, world: World) -> Document:
    """Two pictures side by side, and what they have in common."""
    first = sample(chance, world, "one")
    shape, colour = chance.choice(((first.things[0].kind, None), (None, first.things[0].colour), (None, None)))
    second = sample(chance, world, "one", shape=shape, colour=colour)
    one, two = first.things[0], second.things[0]
    both = [f"are {plural(one.kind)}"] if one.kind == two.kind else []
    both += [f"are {one.colour}"] if one.colour == two.colour else []
    told = f"Both {' and '.join(both)}." if both else "They have neither shape nor colour in common."
    if chance.random() < 0.5:
        return [first, second, told]
    return [first, f"The first picture shows {a(name(one))}.", second, f"The second shows {a(name(two))}. {told}"]


def shots(chance: Random, world: World) -> Document:
    """Questions with short answers in a row, as few-shot prompts are written."""
    document: Document = []
    for _ in range(chance.randint(2, 9)):
        scene = sample(chance, world)
        question = choose(scene, chance, most=1, either=int(chance.random() < 0.15))[0]
        document += [scene, SHOT.format(question=question.text, answer=question.answer)]
    return document


def album(chance: Random, world: World) -> Document:
    """Pictures in a row, each with its caption."""
    scenes = [sample(chance, world) for _ in range(chance.randint(2, 9))]
    return [item for scene in scenes for item in (scene, caption(scene, chance))]


def _changes(scene: Scene, chance: Random) -> list[tuple[Scene, str]]:
    """What can happen to a scene next, and how it is told."""
    index = chance.randrange(len(scene.things))
    thing = scene.things[index]
    if scene.layout == "group":
        return _more_or_fewer(scene, chance)
    taken = [other.colour for other in scene.things]
    colour = chance.choice([colour for colour in COLOURS if colour not in taken])
    size = "small" if thing.size == "large" else "large"
    found = [
        (scene.but(index, colour=colour), f"the {thing.kind} is {colour}."),
        (scene.but(index, size=size), f"the {thing.kind} is {size}."),
    ]
    if scene.layout == "one":
        place = chance.choice([place for place in PLACES if place != thing.place])
        return [*found, (scene.but(index, place=place), f"the {thing.kind} is {WHERE[place]}.")]
    rest = scene.things[1 - index]
    one, two = scene.things
    swapped = scene.but(0, kind=two.kind, colour=two.colour, size=two.size)
    swapped = swapped.but(1, kind=one.kind, colour=one.colour, size=one.size)
    found.append((swapped, f"the {one.kind} and the {two.kind} have changed places."))
    return [*found, (Scene("one", (rest,), scene.look), f"the {thing.kind} is gone.")]


def _more_or_fewer(scene: Scene, chance: Random) -> list[tuple[Scene, str]]:
    count, thing = len(scene.things), scene.things[0]
    found = []
    for step, told in ((1, "one more"), (-1, "one less")):
        if count + step in COUNTS:
            cells = sorted(chance.sample(CELLS, count + step))
            placed = tuple(type(thing)(thing.kind, thing.colour, thing.size, cell) for cell in cells)
            amount = f"{count + step} {plural(thing.kind, count + step)}"
            found.append((Scene("group", placed, scene.look), f"there is {told}: {amount}."))
    return found


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
