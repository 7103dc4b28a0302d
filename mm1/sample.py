"""One document, the same for every corpus: text and pictures in reading order (MM1, section 3.3).

A caption pair is ``(Image, Text)``, a web page any mixture of the two, plain text one ``Text``, and a conversation
alternates text that is only read (``learn=False``) with answers that are learned and closed (``end=True``).
No torch and no PIL here: a picture stays the bytes of its file until it is needed.

A picture larger than its encoder sees is shown in several views, each of which is encoded like a picture of its own
(MM1, section 5, sub-image decomposition after SPHINX). ``Views(rows=2, columns=2)`` at 672 px, for one of 1344 px::

    the whole at 672 px   its upper left   upper right   lower left   lower right        5 x 144 = 720 tokens
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mm1.errors import UserError, at_least

PICTURE = "<image>"  # a picture's place in other formats; a document of ours has an Image there, and no text makes one


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text.

    Args:
        text: The text itself.
        learn: Whether its tokens are targets. False for a user's turn: read, never predicted.
        end: Whether an end-of-text token follows it (and is learned with it). A document ends with one anyway; set it
            where something ends inside, such as an answer in a conversation.
        after_space: Whether a space parts it from what stands before. A sentencepiece vocabulary writes that space into
            its first piece by itself, one of bytes does not; an answer wants it in both.
    """

    text: str
    learn: bool = True
    end: bool = False
    after_space: bool = False

    @property
    def spelled(self) -> str:
        """The text as people read it, with the space before it and ``</s>`` for its end."""
        return " " * self.after_space + self.text + "</s>" * self.end


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a picture laid out as ``rows`` x ``columns`` fields, its ``row`` and ``column`` counted from 0."""

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as the bytes of its file (JPEG, PNG, WebP).

    Args:
        data: The file.
        views: ``full`` is shown in all views that a model takes; ``whole`` in one, whatever the model, as an earlier
            demonstration may be that is to cost little.
        part: What of it is seen; all of it if not given.
    """

    data: bytes
    views: Literal["full", "whole"] = "full"
    part: Part | None = None

    @property
    def key(self) -> bytes:
        """Tells it from every other picture and part."""
        name = hashlib.sha256(self.data).digest()
        return name if self.part is None else hashlib.sha256(name + repr(self.part).encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Views:
    """In which views a picture is shown. Belongs to a model, like the size of its pictures.

    Args:
        rows: Fields from top to bottom; each is as large as the encoder's picture.
        columns: Fields from left to right. One field alone is the whole picture.
        overview: Whether the whole picture, scaled down, stands before the fields, after them, or nowhere. MM1 does not
            say; its successor found it a little better last.
        separator: Text before each view, with ``{number}``, ``{row}`` and ``{column}``; of fields they are counted
            from 1, of the overview 0.

    Raises:
        UserError: No field, no such order, or a separator with something else in braces.
    """

    rows: int = 1
    columns: int = 1
    overview: Literal["first", "last", "none"] = "first"
    separator: str = ""

    def __post_init__(self) -> None:
        at_least(1, {"views.rows": self.rows, "views.columns": self.columns})
        if self.overview not in ("first", "last", "none"):
            raise UserError(f"views.overview is {self.overview!r}; expected first, last or none")
        if unknown := set(re.findall(r"{.*?}|[{}]", self.separator)) - {"{number}", "{row}", "{column}"}:
            raise UserError(
                f"views.separator has {min(unknown)}; expected text with {{number}}, {{row}} and {{column}} alone"
            )

    @property
    def count(self) -> int:
        """Views of a picture, each of which is encoded."""
        fields = self.rows * self.columns
        return 1 if fields == 1 else fields + (self.overview != "none")

    def of(self, image: Image) -> tuple[Text | Image, ...]:
        """A picture's views in order, each behind its separator; one that is a view already stays as it is."""
        if self.count == 1 or image.views == "whole" or image.part:
            return (image,)
        places = [(row, column) for row in range(self.rows) for column in range(self.columns)]
        shown: list[Text | Image] = []
        for number, (row, column) in enumerate(places, start=1):
            field = Image(image.data, "whole", Part(row, column, self.rows, self.columns))
            shown += [*self._separated(number, row + 1, column + 1), field]
        overview: list[Text | Image] = [*self._separated(0, 0, 0), Image(image.data, "whole")]
        ordered = {"first": [*overview, *shown], "last": [*shown, *overview], "none": shown}
        return tuple(ordered[self.overview])

    def _separated(self, number: int, row: int, column: int) -> tuple[Text, ...]:
        text = self.separator.format(number=number, row=row, column=column)
        return (Text(text, learn=False),) if text else ()

    def __str__(self) -> str:
        if self.count == 1:
            return "1 view"
        after = {"first": ", the whole first", "last": ", the whole last", "none": ""}[self.overview]
        marked = f", each after {self.separator!r}" * bool(self.separator)
        return f"{self.count} views ({self.rows} x {self.columns}{after}{marked})"


WHOLE = Views()


def expand(items: Sequence[Text | Image], views: Views) -> list[Text | Image]:
    """Items with every picture as its views; a picture that is a view already stays as it is."""
    return list(_expanded(items, views))


def _expanded(items: Sequence[Text | Image], views: Views) -> Iterator[Text | Image]:
    for item in items:
        yield from views.of(item) if isinstance(item, Image) else (item,)


@dataclass(frozen=True, slots=True)
class Sample:
    """A document.

    Args:
        items: Text and pictures in reading order.
        source: The stream it belongs to: ``captions``, ``interleaved``, ``text`` or ``sft``.
        id: Unique within its source; the validation split is a function of it.
    """

    items: tuple[Text | Image, ...]
    source: str
    id: str

    @property
    def images(self) -> int:
        """Number of pictures."""
        return sum(isinstance(item, Image) for item in self.items)
