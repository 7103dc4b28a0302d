"""What a scene is: a small value that says what is drawn, so that every caption and answer can be computed from it.

A scene has a *meaning* (what a caption could tell: layout, things, their places) and a *look* (what none could: exact
spot, tilt, backdrop, grain). Train and test worlds are split by a hash of the meaning alone, the same for every seed:
a test scene never stands in train with another look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Literal

World = Literal["train", "test"]
Layout = Literal["one", "pair", "trio", "group", "number", "word"]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
WORDS = ("cat", "dog", "sun", "cup", "hat", "bus", "key", "pen", "box", "egg", "fox", "map")
COUNTS = (1, 2, 3, 4, 5)
CELLS = tuple("123456789")  # of a group, like the keys of a telephone

LAYOUT_WEIGHTS: dict[Layout, int] = {"one": 34, "pair": 26, "trio": 9, "group": 19, "number": 6, "word": 6}
TEST_SHARE = 5  # one meaning in so many belongs to the test world


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene.

    Args:
        kind: A shape, or ``number`` or ``word``.
        colour: One of ``COLOURS``.
        size: ``small`` or ``large`` where it is told, ``medium`` where it never is.
        place: One of ``PLACES``, or a cell of a group.
        text: What is written, for a number or a word.
    """

    kind: str
    colour: str
    size: str
    place: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture, before it is drawn.

    Args:
        layout: How the things stand together.
        things: Left to right or top to bottom.
        look: A seed for all that no caption tells.
    """

    layout: Layout
    things: tuple[Thing, ...]
    look: int

    @property
    def meaning(self) -> str:
        """All that could be told of it; two scenes with one meaning are the same scene seen twice."""
        things = ";".join(f"{t.kind} {t.colour} {t.size} {t.place} {t.text}" for t in self.things)
        return f"{self.layout}: {things}"

    @property
    def world(self) -> World:
        """The world it belongs to."""
        return world_of(self.meaning)

    def but(self, index: int, **changes: str) -> Scene:
        """The same scene with one thing changed."""
        changed = replace(self.things[index], **changes)
        return replace(self, things=(*self.things[:index], changed, *self.things[index + 1 :]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; :func:`from_dict` reads them."""
        return asdict(self)


def from_dict(values: dict[str, Any]) -> Scene:
    """The scene that :meth:`Scene.as_dict` wrote down."""
    return Scene(values["layout"], tuple(Thing(**thing) for thing in values["things"]), values["look"])


def world_of(meaning: str) -> World:
    """The world of a meaning, or of a made-up word: a fixed hash, so no seed can move it from test to train."""
    digest = hashlib.sha256(meaning.encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def chance_of(seed: int, part: str, index: int) -> Random:
    """The source of randomness of one item: a larger corpus of the same seed begins with the smaller one."""
    return Random(f"{seed}/{part}/{index}")


def sample(
    chance: Random, world: World, layout: Layout | None = None, *, shape: str | None = None, colour: str | None = None
) -> Scene:
    """Draw a scene of a world; one must exist with what is asked for.

    Args:
        chance: Where the randomness comes from.
        world: Which world it must belong to.
        layout: Its layout; by ``LAYOUT_WEIGHTS`` if not given.
        shape: The shape of its first thing, if it matters.
        colour: The colour of its first thing, if it matters.
    """
    layout = layout or chance.choices(list(LAYOUT_WEIGHTS), list(LAYOUT_WEIGHTS.values()))[0]
    while True:
        scene = Scene(layout, _things(chance, layout, shape, colour), chance.getrandbits(32))
        if scene.world == world:
            return scene


def others(chance: Random, options: Sequence[str], first: str | None, count: int) -> list[str]:
    """``count`` distinct options, the first of them given or drawn too."""
    first = first or chance.choice(options)
    return [first, *chance.sample([option for option in options if option != first], count - 1)]


def _things(chance: Random, layout: Layout, shape: str | None, colour: str | None) -> tuple[Thing, ...]:
    """Things of one layout; shapes and colours of a pair or trio are distinct, so "the circle" is always one thing."""
    match layout:
        case "one":
            kind, paint = shape or chance.choice(SHAPES), colour or chance.choice(COLOURS)
            return (Thing(kind, paint, chance.choice(SIZES), chance.choice(PLACES)),)
        case "number":
            text = chance.choice("0123456789")
            return (Thing("number", chance.choice(COLOURS), chance.choice(SIZES), chance.choice(PLACES), text),)
        case "word":
            place = chance.choice(("top", "middle", "bottom"))
            return (Thing("word", chance.choice(COLOURS), "medium", place, chance.choice(WORDS)),)
        case "group":
            kind, paint = shape or chance.choice(SHAPES), colour or chance.choice(COLOURS)
            cells = sorted(chance.sample(CELLS, chance.choice(COUNTS)))
            return tuple(Thing(kind, paint, "medium", cell) for cell in cells)
        case "pair":
            places = list(chance.choice((("left", "right"), ("top", "bottom"))))
            sizes = [chance.choice(SIZES) for _ in places]
        case "trio":
            places, sizes = ["left", "middle", "right"], ["medium"] * 3
    kinds, paints = others(chance, SHAPES, shape, len(places)), others(chance, COLOURS, colour, len(places))
    return tuple(Thing(*thing) for thing in zip(kinds, paints, sizes, places, strict=True))
