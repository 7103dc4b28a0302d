"""The picture of a scene: filled outlines on pale paper, drawn large and scaled down so that edges are smooth.

A faint grain lies over everything. Without it two pictures of one shape differ so little in brightness that a
perceptual hash takes them for the same photograph; with it each picture is its own.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFont

from data_pipelines.scenes.world import Layout, Scene, Thing

RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "orange": (245, 140, 22),
    "yellow": (240, 216, 36),
    "green": (36, 158, 70),
    "blue": (36, 92, 218),
    "purple": (128, 48, 168),
    "pink": (244, 138, 190),
    "black": (24, 24, 24),
}
PAPERS = ((240, 240, 240), (206, 210, 214), (232, 224, 206))
SUPERSAMPLING = 2
GRAIN_CELLS, GRAIN_LEVELS = 12, 12  # cells a side, brightness levels from the darkest to the lightest
JPEG_QUALITY = 90

# Shares of the picture's side: radius of a shape, height of letters; as big as there is room, for big is learned soon.
_EXTENTS: dict[Layout, dict[str, float]] = {
    "one": {"small": 0.17, "large": 0.265},
    "pair": {"small": 0.15, "large": 0.23},
    "trio": {"medium": 0.15},
    "group": {"medium": 0.14},
    "number": {"small": 0.38, "large": 0.57},
    "word": {"medium": 0.38},
}
_CENTRES = {"left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73), "middle": (0.5, 0.5)}
_CENTRES_OF: dict[str, dict[str, tuple[float, float]]] = {
    "trio": {"left": (0.18, 0.5), "middle": (0.5, 0.5), "right": (0.82, 0.5)},
    "word": {"top": (0.5, 0.3), "middle": (0.5, 0.5), "bottom": (0.5, 0.7)},
}
_JITTER, _SCALING, _TILT_DEGREES = 0.02, 0.05, 9.0


def _round(corners: int, *radii: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners on circles around the middle, the radii taken in turn; the first stands at the top."""
    angles = (2 * math.pi * i / corners + turn for i in range(corners))
    return [(radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    """The usual curve of a heart, scaled to the unit circle."""
    angles = (2 * math.pi * i / 40 for i in range(40))
    return [
        (math.sin(a) ** 3, (-13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a)) / 16)
        for a in angles
    ]


def _turned(corners: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    """Corners turned clockwise by so many right angles."""
    for _ in range(quarters):
        corners = [(-y, x) for x, y in corners]
    return corners


_ARM = 0.34
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _round(40, 0.95),
    "square": _round(4, 1.2, turn=math.pi / 4),
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _round(10, 1.1, 0.46),
    "heart": _heart(),
    "cross": [corner for i in range(4) for corner in _turned([(_ARM, -1), (_ARM, -_ARM), (1, -_ARM)], i)],
}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a thing stands: centre and extent as shares of the side, tilt in degrees."""

    x: float
    y: float
    extent: float
    tilt: float


def spots(scene: Scene) -> list[Spot]:
    """Where the things of a scene stand, a function of its look."""
    chance = Random(scene.look)
    return [_spot(chance, scene.layout, thing) for thing in scene.things]


def draw(scene: Scene, image_px: int = 64) -> Image.Image:
    """The picture of a scene, RGB, ``image_px`` a side; a pure function of both."""
    side = image_px * SUPERSAMPLING
    chance = Random(scene.look)
    placed = [(thing, _spot(chance, scene.layout, thing)) for thing in scene.things]
    canvas = Image.new("RGB", (side, side), chance.choice(PAPERS))
    pen = ImageDraw.Draw(canvas)
    for thing, spot in placed:
        if thing.text:
            font = _font(round(spot.extent * side))
            centre = (spot.x * side, spot.y * side)
            pen.text(centre, thing.text, RGB[thing.colour], font, "mm", stroke_width=round(side / 64))
        else:
            pen.polygon(_outline(thing.kind, spot, side), RGB[thing.colour])
    return _grain(canvas.reduce(SUPERSAMPLING), chance)


def jpeg(scene: Scene, image_px: int = 64) -> bytes:
    """The picture as a JPEG file, colours at full resolution."""
    buffer = io.BytesIO()
    draw(scene, image_px).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _spot(chance: Random, layout: Layout, thing: Thing) -> Spot:
    if layout == "group":
        cell = int(thing.place) - 1
        x, y = 0.19 + 0.31 * (cell % 3), 0.19 + 0.31 * (cell // 3)
    else:
        x, y = _CENTRES_OF.get(layout, _CENTRES)[thing.place]
    dx, dy, tilt, scale = (chance.uniform(-1, 1) for _ in range(4))
    extent = _EXTENTS[layout][thing.size] * (1 + _SCALING * scale)
    return Spot(x + _JITTER * dx, y + _JITTER * dy, extent, _TILT_DEGREES * tilt)


def _outline(kind: str, spot: Spot, side: int) -> list[tuple[float, float]]:
    sine, cosine = math.sin(math.radians(spot.tilt)), math.cos(math.radians(spot.tilt))
    return [
        (
            (spot.x + spot.extent * (x * cosine - y * sine)) * side,
            (spot.y + spot.extent * (x * sine + y * cosine)) * side,
        )
        for x, y in OUTLINES[kind]
    ]


def _grain(picture: Image.Image, chance: Random) -> Image.Image:
    cells = Image.frombytes("L", (GRAIN_CELLS, GRAIN_CELLS), chance.randbytes(GRAIN_CELLS**2))
    levels = cells.resize(picture.size, Image.Resampling.BICUBIC).point([v * GRAIN_LEVELS // 256 for v in range(256)])
    return ImageChops.add(picture, Image.merge("RGB", [levels] * 3), offset=-(GRAIN_LEVELS // 2))


@lru_cache
def _font(letters_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(letters_px)  # Pillow's own, so that no machine's fonts matter
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
