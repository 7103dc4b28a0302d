"""Documents as a page shows them: tokens with what each is for, pictures scaled down, and nothing that a page obeys.

What stands in raw files is other people's text. Letters that would not be seen, or would turn the line around, are
written out, and pictures are drawn anew, so that a page holds no byte of their files.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import PIL.Image
from torch import Tensor

from mm1.batch import IMAGE
from mm1.data.image import PictureError, decode
from mm1.data.tokenizer import Tokenizer
from mm1.sample import Image, Sample, Text

SIDE_PX = 320
PER_LETTER = 8  # the most ids that one letter is spelled with


@dataclass(frozen=True, slots=True)
class Word:
    """One token, or a few that spell a letter together; without a tokenizer a whole text.

    Args:
        text: As it can be seen.
        learned: Whether it is a target.
        note: Positions and ids.
        control: Whether it begins or ends a document.
    """

    text: str
    learned: bool
    note: str = ""
    control: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture.

    Args:
        uri: It, as the page holds it; None where it does not decode.
        note: Its size, or why it is not there.
        small: Whether it has so few pixels that they should be seen as squares.
    """

    uri: str | None
    note: str
    small: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of positions of one kind, for the map of a row.

    Args:
        kind: ``picture``, ``learned``, ``read`` or ``padding``.
        positions: Its length.
        hue: Of its document, in degrees.
        note: What it is.
        first: Whether a document begins with it.
    """

    kind: str
    positions: int
    hue: int
    note: str
    first: bool = False


@dataclass
class Card:
    """A document.

    Args:
        id: Its name.
        source: Its stream.
        hue: Its colour, in degrees.
        items: Words and pictures in reading order.
        facts: What is worth telling of it, a few words each.
    """

    id: str
    source: str
    hue: int
    items: list[Word | Shown] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        """Whether it wants a line of its own."""
        return sum(len(item.text) for item in self.items if isinstance(item, Word)) > 900 or self.pictures > 3

    @property
    def blocks(self) -> list[list[Word | Shown]]:
        """Stretches of text, and of pictures beside each other with what begins the document before them."""
        made: list[list[Word | Shown]] = []
        for item in self.items:
            last = made[-1] if made else []
            begun = bool(last) and all(isinstance(one, Word) and one.control for one in last)
            if not made or not (begun or isinstance(last[-1], Shown) == isinstance(item, Shown)):
                made.append([])
            made[-1].append(item)
        return made

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return sum(isinstance(item, Shown) for item in self.items)


def plain(items: Sequence[Text | Shown]) -> list[Word | Shown]:
    """Items without a tokenizer: each text is one word."""
    return [Word(visible(item.spelled), item.learn) if isinstance(item, Text) else item for item in items]


def words(
    tokens: Sequence[int], learned: Sequence[bool], pictures: Iterator[Shown], tokenizer: Tokenizer, per_image: int
) -> list[Word | Shown]:
    """Positions of one document as words and pictures.

    Args:
        tokens: T ids, ``IMAGE`` where a picture's token goes.
        learned: T; whether the token is a target.
        pictures: Those of the document, in order.
        tokenizer: Spells the ids.
        per_image: Positions of a picture.
    """
    made: list[Word | Shown] = []
    at = 0
    while at < len(tokens):
        if tokens[at] == IMAGE:
            made.append(next(pictures))
            at += per_image
            continue
        end = at
        while end < len(tokens) and tokens[end] != IMAGE and tokens[end] not in (tokenizer.bos, tokenizer.eos):
            end += 1
        if end == at:
            made.append(Word("begin" if tokens[at] == tokenizer.bos else "end", learned[at], f"position {at}", True))
            at += 1
            continue
        for start, stop, text in spelled(tokens[at:end], tokenizer):
            ids = " ".join(map(str, tokens[at + start : at + stop]))
            made.append(Word(visible(text), learned[at + start], f"position {at + start}, id {ids}"))
        at = end
    return made


def spelled(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[int, int, str]]:
    """Ids as stretches (first, end, text) that make the whole text; of several ids where one letter needs them."""
    before = begin = 0  # the stretch before is decoded along, because a first piece loses its space
    for end in range(1, len(ids) + 1):
        known, now = tokenizer.decode(ids[before:begin]), tokenizer.decode(ids[before:end])
        if now.endswith("\ufffd") and end < len(ids) and end - begin < PER_LETTER:
            continue
        yield begin, end, now[len(known) :]
        before, begin = begin, end


def runs(tokens: Sequence[int], learned: Sequence[bool], hue: int, per_image: int) -> Iterator[Run]:
    """Stretches of one document for the map of its row."""
    at = 0
    while at < len(tokens):
        if tokens[at] == IMAGE:
            yield Run("picture", per_image, hue, f"picture, {per_image} positions", first=at == 0)
            at += per_image
            continue
        end = at
        while end < len(tokens) and tokens[end] != IMAGE and learned[end] == learned[at]:
            end += 1
        kind = "learned" if learned[at] else "read"
        note = f"{end - at} text tokens, {'learned' if learned[at] else 'only read'}"
        yield Run(kind, end - at, hue, note, first=at == 0)
        at = end


def items_of(sample: Sample) -> list[Text | Shown]:
    """A sample with its pictures ready to be seen."""
    return [shown(item.data) if isinstance(item, Image) else item for item in sample.items]


def shown(data: bytes) -> Shown:
    """A picture's file, drawn anew."""
    try:
        picture = decode(data)
    except PictureError as error:
        return Shown(None, str(error))
    note = f"{picture.width} × {picture.height}"
    picture.thumbnail((SIDE_PX, SIDE_PX))
    return Shown(_uri(picture), note, small=max(picture.size) < SIDE_PX / 2)


def shown_pixels(image_CHW: Tensor) -> Shown:
    """A picture as the model gets it, uint8[3, S, S]."""
    picture = PIL.Image.fromarray(numpy.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy()))
    picture.thumbnail((SIDE_PX, SIDE_PX))
    return Shown(_uri(picture), f"{image_CHW.shape[2]} × {image_CHW.shape[1]}", small=image_CHW.shape[1] < SIDE_PX / 2)


def _uri(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def visible(text: str) -> str:
    """Text with every letter that cannot be seen written out, but for spaces, tabs and line ends."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(letter: str) -> str:
    if letter.isprintable() or letter in " \n\t":
        return letter
    return f"⟨{unicodedata.category(letter)} {ord(letter):04X}⟩"
