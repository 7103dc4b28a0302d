"""What can be said about a scene in a dozen plain words: few words, few turns of phrase, every one of them true."""

from __future__ import annotations

from random import Random

from data_pipelines.scenes.world import Scene, Thing

WHERE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
WHERE["middle"] = "in the middle"
RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}


def captions(scene: Scene) -> list[str]:
    """Five ways to say what a scene shows, the plainest first; each names every shape, colour and number in it."""
    match scene.layout:
        case "pair":
            return _pair_captions(*scene.things)
        case "trio":
            left, middle, right = (a(name(thing)) for thing in scene.things)
            return [
                f"{_capital(left)}, {middle} and {right} in a row.",
                f"There is {left} on the left, {middle} in the middle and {right} on the right.",
                f"{_capital(middle)} between {left} and {right}.",
                f"The picture shows {left}, {middle} and {right}.",
                f"From left to right we see {left}, {middle} and {right}.",
            ]
        case "group":
            thing, count = scene.things[0], len(scene.things)
            them, verb = f"{count} {thing.colour} {plural(thing.kind, count)}", "is" if count == 1 else "are"
            return [
                f"{them}.",
                f"There {verb} {them}.",
                f"The picture shows {them}.",
                f"We see {them}.",
                f"{count} {plural(thing.kind, count)} in {thing.colour}.",
            ]
        case _:
            thing = scene.things[0]
            it, where = noun(thing), WHERE[thing.place]
            return [
                f"{_capital(it)} {where}.",
                f"There is {it} {where}.",
                f"The picture shows {it} {where}.",
                f"We see {it} {where}.",
                f"{_capital(where)} is {it}.",
            ]


def caption(scene: Scene, chance: Random) -> str:
    """One caption, the plainest one half of the time."""
    first, *rest = captions(scene)
    return first if chance.random() < 0.5 else chance.choice(rest)


def noun(thing: Thing) -> str:
    """A thing with its article: "a large red circle", "the number 7 in red"."""
    if thing.kind == "word":
        return f"the word {thing.text} in {thing.colour}"
    if thing.kind == "number":
        return f"the {thing.size} number {thing.text} in {thing.colour}"
    return a(name(thing))


def name(thing: Thing) -> str:
    """A shape without article, its size only where sizes are told: "large red circle", "red circle"."""
    size = "" if thing.size == "medium" else f"{thing.size} "
    return f"{size}{thing.colour} {thing.kind}"


def a(noun_phrase: str) -> str:
    """The indefinite article put before it."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def plural(word: str, count: int = 2) -> str:
    """The word for so many of them."""
    if count == 1:
        return word
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _pair_captions(one: Thing, two: Thing) -> list[str]:
    first, second = a(name(one)), a(name(two))
    return [
        f"{_capital(first)} {RELATION[one.place]} {second}.",
        f"{_capital(second)} {RELATION[two.place]} {first}.",
        f"There is {first} {RELATION[one.place]} {second}.",
        f"The picture shows {first} {RELATION[one.place]} {second}.",
        f"{_capital(WHERE[one.place])} is {first} and {WHERE[two.place]} is {second}.",
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
