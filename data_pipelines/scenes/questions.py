"""Questions about a scene with answers that only the picture gives away.

Nothing in "What colour is the circle?" favours one of eight colours, so the best constant answer stays near chance.
Questions with two answers (yes or no, large or small) are marked ``either``: balanced, but half right by guessing, so
they are asked seldom.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from data_pipelines.scenes.language import RELATION, WHERE, a, plural
from data_pipelines.scenes.world import COLOURS, SHAPES, Scene, Thing, others

SYNONYMS = {
    "circle": ("disc", "round"),
    "square": ("box",),
    "cross": ("plus",),
    "red": ("dark red",),
    "blue": ("dark blue",),
    "purple": ("violet",),
    "pink": ("light pink",),
    "large": ("big",),
    "small": ("little",),
    "middle": ("center",),
    "top": ("above",),
    "bottom": ("below",),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its one right answer.

    Args:
        kind: What it is about, in VQA's ``question_type``.
        text: The question.
        answer: One word.
        either: Whether there are only two possible answers.
    """

    kind: str
    text: str
    answer: str
    either: bool = False

    @property
    def answer_type(self) -> str:
        """VQA's ``answer_type``."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"


def questions(scene: Scene, chance: Random) -> list[Question]:
    """Every question that fits a scene, in random order; ``chance`` picks the wording and what a wrong guess names."""
    match scene.layout:
        case "pair" | "trio":
            found = [question for thing in scene.things for question in _of_a_place(thing, chance)]
            found += [question for thing in scene.things for question in _of_a_shape(thing, chance)]
            if scene.layout == "pair":
                found += _of_a_pair(scene.things, chance)
        case "group":
            found = _of_a_group(scene.things, chance)
        case "number" | "word":
            found = _of_a_text(scene.things[0], chance)
        case "one":
            thing = scene.things[0]
            found = [*_of_a_shape(thing, chance), *_of_a_single(thing, chance)]
            found.append(
                Question("what shape", _say(chance, "What shape is this?", "What shape do you see?"), thing.kind)
            )
    chance.shuffle(found)
    return found


def choose(scene: Scene, chance: Random, most: int, either: int) -> list[Question]:
    """Up to ``most`` questions about a scene, up to ``either`` of them with only two possible answers."""
    found = questions(scene, chance)
    guessable = [question for question in found if question.either][:either]
    return [question for question in found if not question.either][: most - len(guessable)] + guessable


def ten_answers(answer: str, chance: Random) -> list[str]:
    """What ten people would say: at least eight the answer, the others another word for it, if there is one."""
    strays = [chance.choice(SYNONYMS.get(answer, (answer,))) for _ in range(chance.randint(0, 2))]
    answers = [answer] * (10 - len(strays)) + strays
    chance.shuffle(answers)
    return answers


def _say(chance: Random, *wordings: str) -> str:
    return chance.choice(wordings)


def _of_a_shape(thing: Thing, chance: Random) -> list[Question]:
    """About a shape that stands once in the picture."""
    kind, colour = thing.kind, thing.colour
    guess = colour if chance.random() < 0.5 else others(chance, COLOURS, colour, 2)[1]
    agrees = "yes" if guess == colour else "no"
    return [
        Question("what colour", _say(chance, f"What colour is the {kind}?", f"Which colour is the {kind}?"), colour),
        Question("what shape", _say(chance, f"What shape is {colour}?", f"Which shape is {colour}?"), kind),
        Question("is the", f"Is the {kind} {guess}?", agrees, either=True),
        _is_there(thing, chance),
    ]


def _of_a_single(thing: Thing, chance: Random) -> list[Question]:
    """About the only thing of a picture."""
    it = f"the {thing.kind}"
    return [
        Question("where is", _say(chance, f"Where is {it}?", f"Where do you see {it}?"), thing.place),
        Question("is the", f"Is {it} large or small?", thing.size, either=True),
    ]


def _of_a_place(thing: Thing, chance: Random) -> list[Question]:
    where = WHERE[thing.place]
    return [
        Question("what colour", f"What colour is the shape {where}?", thing.colour),
        Question("what shape", _say(chance, f"What shape is {where}?", f"Which shape is {where}?"), thing.kind),
    ]


def _of_a_pair(things: tuple[Thing, ...], chance: Random) -> list[Question]:
    one, two = chance.sample(things, 2)
    found = [Question("what is", f"What is {RELATION[one.place]} the {two.kind}?", one.kind)]
    if one.size != two.size:
        large = one if one.size == "large" else two
        found.append(Question("what shape", _say(chance, "What shape is larger?", "Which shape is large?"), large.kind))
    return found


def _of_a_group(things: tuple[Thing, ...], chance: Random) -> list[Question]:
    thing, count = things[0], len(things)
    many = _say(chance, f"How many {plural(thing.kind)} are there?", "How many shapes are there?")
    them = f"is the {thing.kind}" if count == 1 else f"are the {plural(thing.kind)}"
    return [
        Question("how many", many, str(count)),
        Question("what colour", f"What colour {them}?", thing.colour),
        Question("what shape", _say(chance, "What shape do you see?", f"Which shape is {thing.colour}?"), thing.kind),
        _is_there(thing, chance),
    ]


def _of_a_text(thing: Thing, chance: Random) -> list[Question]:
    kind, text, colour = thing.kind, thing.text, thing.colour
    guess = colour if chance.random() < 0.5 else others(chance, COLOURS, colour, 2)[1]
    return [
        Question(f"what {kind}", _say(chance, f"What {kind} is this?", f"Which {kind} is written?"), text),
        Question("what colour", _say(chance, f"What colour is the {kind}?", f"Which colour is the {kind}?"), colour),
        Question("is the", f"Is the {kind} {guess}?", "yes" if guess == colour else "no", either=True),
        *(
            _of_a_single(thing, chance)
            if kind == "number"
            else [Question("where is", "Where is the word?", thing.place)]
        ),
    ]


def _is_there(thing: Thing, chance: Random) -> Question:
    """Whether something is there, half of the time with one of shape and colour exchanged."""
    kind, colour, answer = thing.kind, thing.colour, "yes"
    if chance.random() < 0.5:
        answer = "no"
        if chance.random() < 0.5:
            kind = others(chance, SHAPES, kind, 2)[1]
        else:
            colour = others(chance, COLOURS, colour, 2)[1]
    return Question("is there", f"Is there {a(f'{colour} {kind}')}?", answer, either=True)
