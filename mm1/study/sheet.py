"""Draws rows of photographs with words under them as one picture, for a page that shows no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mm1.errors import UserError
from mm1.study.plots import COLOURS

WIDTH_PX, MARGIN_PX, GUTTER_PX, APART_PX = 1680, 48, 28, 4
SHAPE = 4 / 3  # of the space for a photograph, width over height
NEAR_SHAPE = 1.15  # a photograph that is as near as this fills it, another one is shown whole
PANEL, GOOD, BAD = "#efebe4", "#0d7a6f", "#a8431c"
RADIUS_PX = 10
FONTS = {"plain": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf", "italic": "DejaVuSans-Oblique.ttf"}

Face = Literal["plain", "bold", "italic"]


@dataclass(frozen=True)
class Card:
    """A photograph and what is said of it.

    Args:
        path: Its file.
        mark: A word or number on it.
        said: What the model said.
        notes: What people said, and what else there is to say, smaller, each on a line of its own.
        asked: A question before it, if there is one.
        good: Colours the mark; None leaves it dark.
    """

    path: Path
    mark: str
    said: str
    notes: tuple[str, ...]
    asked: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Row:
    """Cards beside each other under a name."""

    name: str
    cards: list[Card]


def draw(rows: Sequence[Row], title: str, note: str) -> Image.Image:
    """The sheet.

    Args:
        rows: From the top.
        title: Heading.
        note: What stands below the heading, such as the rule of choice.

    Raises:
        UserError: A picture that does not decode.
    """
    columns = max(len(row.cards) for row in rows)
    card_px = (WIDTH_PX - 2 * MARGIN_PX - (columns - 1) * GUTTER_PX) // columns
    strips = [_heading(title, note), *(_row(row, card_px) for row in rows)]
    sheet = Image.new("RGB", (WIDTH_PX, sum(strip.height for strip in strips) + MARGIN_PX // 2), COLOURS["paper"])
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def wrapped(text: str, face: Face, size_px: int, width_px: int) -> list[str]:
    """Lines no wider than ``width_px``; a word that is wider stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(face, size_px).getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _heading(title: str, note: str) -> Image.Image:
    told = wrapped(note, "plain", 21, WIDTH_PX - 2 * MARGIN_PX)
    strip = Image.new("RGB", (WIDTH_PX, MARGIN_PX + 56 + 30 * len(told) + 8), COLOURS["paper"])
    pen = ImageDraw.Draw(strip)
    pen.text((MARGIN_PX, MARGIN_PX - 6), title, COLOURS["ink"], _font("bold", 36))
    _lines(pen, told, (MARGIN_PX, MARGIN_PX + 52), "plain", 21, COLOURS["muted"])
    return strip


def _row(row: Row, card_px: int) -> Image.Image:
    cards = [_card(card, card_px) for card in row.cards]
    head = 62
    strip = Image.new("RGB", (WIDTH_PX, head + max(card.height for card in cards) + 18), COLOURS["paper"])
    pen = ImageDraw.Draw(strip)
    pen.line((MARGIN_PX, 14, WIDTH_PX - MARGIN_PX, 14), COLOURS["rule"], 2)
    pen.text((MARGIN_PX, 26), row.name, COLOURS["muted"], _font("bold", 21))
    for at, card in enumerate(cards):
        strip.paste(card, (MARGIN_PX + at * (card_px + GUTTER_PX), head))
    return strip


def _card(card: Card, width_px: int) -> Image.Image:
    texts: list[tuple[str, Face, int, str]] = [
        (card.asked, "italic", 22, COLOURS["muted"]),
        (card.said, "bold", 24, COLOURS["ink"]),
        *((note, "plain", 20, COLOURS["muted"]) for note in card.notes),
    ]
    blocks = [(wrapped(text, face, px, width_px), face, px, colour) for text, face, px, colour in texts if text]
    photo_px = round(width_px / SHAPE)
    height = photo_px + 14 + sum(_leading(px) * len(lines) + APART_PX for lines, _, px, _ in blocks)
    drawn = Image.new("RGB", (width_px, height), COLOURS["paper"])
    drawn.paste(_photograph(card, width_px, photo_px), (0, 0))
    pen, top = ImageDraw.Draw(drawn), photo_px + 14
    for lines, face, px, colour in blocks:
        top = _lines(pen, lines, (0, top), face, px, colour) + APART_PX
    return drawn


def _photograph(card: Card, width_px: int, height_px: int) -> Image.Image:
    """The photograph in the middle of a panel with round corners, its mark in the lower left one."""
    try:
        with Image.open(card.path) as file:
            away = file.width / file.height / SHAPE
            brought = ImageOps.fit if 1 / NEAR_SHAPE < away < NEAR_SHAPE else ImageOps.contain
            photo = brought(file.convert("RGB"), (width_px, height_px), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL makes of a broken one
        raise UserError(f"{card.path} is not readable; expected the file of a picture") from None
    panel = ImageOps.pad(photo, (width_px, height_px), color=PANEL)
    pen = ImageDraw.Draw(panel)
    colour = COLOURS["ink"] if card.good is None else GOOD if card.good else BAD
    width = round(_font("bold", 20).getlength(card.mark)) + 24
    pen.rounded_rectangle((10, height_px - 44, 10 + width, height_px - 10), 17, colour)
    pen.text((22, height_px - 27), card.mark, "white", _font("bold", 20), anchor="lm")
    corners = Image.new("L", (4 * width_px, 4 * height_px))
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, *corners.size), 4 * RADIUS_PX, 255)
    empty = Image.new("RGB", panel.size, COLOURS["paper"])
    return Image.composite(panel, empty, corners.resize(panel.size, Image.Resampling.LANCZOS))


def _lines(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[int, int], face: Face, size_px: int, colour: str
) -> int:
    """Write lines and give where the next one would begin."""
    left, top = place
    for line in lines:
        pen.text((left, top), line, colour, _font(face, size_px))
        top += _leading(size_px)
    return top


def _leading(size_px: int) -> int:
    return round(1.36 * size_px)


@cache
def _font(face: Face, size_px: int) -> ImageFont.FreeTypeFont:
    """From matplotlib's package: the only fonts that are certain to be there."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[face]), size_px)
