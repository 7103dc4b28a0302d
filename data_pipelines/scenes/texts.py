"""Text without pictures about the same little world, and the turns of an instruction.

Plain text keeps the decoder's language alive (MM1, section 3.3, mixes in a tenth); here it counts, tells what shapes,
colours and words are, and tells small stories that answer the questions after them.
"""

from __future__ import annotations

from random import Random

from data_pipelines.scenes.documents import SHOT
from data_pipelines.scenes.language import RELATION, a, caption, name, plural
from data_pipelines.scenes.questions import choose
from data_pipelines.scenes.world import COLOURS, SHAPES, WORDS, Scene, sample

NAMES = ("Anna", "Ben", "Mia", "Tom", "Lea", "Max", "Ida", "Sam")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CORNERS = {"circle": 0, "square": 4, "triangle": 3}
LIKE = {
    "red": ("a rose", "a tomato"),
    "orange": ("a carrot", "an orange"),
    "yellow": ("the sun", "a lemon"),
    "green": ("grass", "a leaf"),
    "blue": ("the sky", "the sea"),
    "purple": ("a plum", "a violet"),
    "pink": ("a pig", "a rose"),
    "black": ("coal", "the night"),
}
CAPTION_REQUESTS = ("Describe the picture.", "What does the picture show?", "Write a caption.")


def text(chance: Random) -> str:
    """One plain text of a few sentences."""
    return chance.choices((_facts, _counting, _story), (2, 1, 3))[0](chance)


def conversation(scene: Scene, chance: Random) -> list[tuple[str, str]]:
    """Four to eight turns about one picture: questions with short answers, now and then a caption."""
    most = chance.randint(4, 8)
    turns = [(question.text, question.answer) for question in choose(scene, chance, most, either=most // 4)]
    chance.shuffle(turns)
    if chance.random() < 0.35:
        turns.insert(chance.randint(0, len(turns)), (chance.choice(CAPTION_REQUESTS), caption(scene, chance)))
    return turns[:8]


def quiz(chance: Random) -> list[tuple[str, str]]:
    """One to three turns without a picture."""
    return [fact_asked(chance)[1:] for _ in range(chance.randint(1, 3))]


def fact_asked(chance: Random) -> tuple[str, str, str]:
    """Something true of this world, as a sentence, a question and its answer."""
    number, shape, colour, word = (
        chance.randint(1, 8),
        chance.choice(SHAPES),
        chance.choice(COLOURS),
        chance.choice(WORDS),
    )
    cornered, likeness = chance.choice(list(CORNERS)), chance.choice(LIKE[colour])
    return chance.choice(
        (
            (f"{number + 1} comes after {number}.", f"What number comes after {number}?", str(number + 1)),
            (f"{number - 1} comes before {number}.", f"What number comes before {number}?", str(number - 1)),
            (f"The number {NUMBERS[number]} is written {number}.", f"How is {NUMBERS[number]} written?", str(number)),
            (f"A {shape} is a shape.", f"Is {shape} a shape or a colour?", "shape"),
            (f"{colour.capitalize()} is a colour.", f"Is {colour} a shape or a colour?", "colour"),
            (f"The word {word} begins with {word[0]}.", f"What letter does {word} begin with?", word[0]),
            (
                f"A {cornered} has {CORNERS[cornered]} corners.",
                f"How many corners has a {cornered}?",
                str(CORNERS[cornered]),
            ),
            (f"{colour.capitalize()} is the colour of {likeness}.", f"What colour is {likeness}?", colour),
        )
    )


def _facts(chance: Random) -> str:
    return " ".join(fact_asked(chance)[0] for _ in range(chance.randint(3, 6)))


def _counting(chance: Random) -> str:
    shape, last = chance.choice(SHAPES), chance.randint(2, 6)
    counted = [f"{count} {plural(shape, count)}" for count in range(1, last + 1)]
    person = chance.choice(NAMES)
    return f"{person} counts the {plural(shape)}: {', '.join(counted)}. There are {last} {plural(shape)}."


def _story(chance: Random) -> str:
    """Someone draws a pair of shapes; what is asked then was told before."""
    scene, person = sample(chance, "train", "pair"), chance.choice(NAMES)
    one, two = scene.things
    verb = chance.choice(("draws", "paints", "sees"))
    told = [
        f"{person} {verb} {a(name(one))}.",
        f"Then {person} {verb} {a(name(two))}.",
        f"The {one.kind} is {RELATION[one.place]} the {two.kind}.",
    ]
    if chance.random() < 0.5:
        told.append(f"Now there are 2 shapes, the {one.kind} and the {two.kind}.")
    asked = choose(scene, chance, most=chance.randint(1, 3), either=0)
    return " ".join(told + [SHOT.format(question=question.text, answer=question.answer) for question in asked])
