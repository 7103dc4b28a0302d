"""Cutting a document that is longer than a row into pieces that each fit one, with nothing lost but white space.

    I "A map." "Long text. It goes on. And on."      a row takes I and 8 tokens
    I "A map."                                       a picture stays with the text that follows it
    "Long text. It goes on."                         items are cut at sentence ends, at words where a sentence
    "And on."                                        alone is longer than a row

A conversation is cut between turns, and each piece opens with the conversation's instructions and pictures again: a
question about a picture that is not there would teach the model to guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mm1 import template
from mm1.data.tokenizer import Tokenizer
from mm1.sample import Image, Text

Items = tuple[Text | Image, ...]
How = Literal["sentences", "words", "items", "never"]

SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*\s+|[。！？]\s*|\n\s*|\Z)", re.DOTALL)
WORD = re.compile(r"\S+\s*")
WINDOW = 64  # characters looked at for each position to fill, far more than a token ever has


@dataclass(frozen=True, slots=True)
class Limits:
    """What a row takes.

    Args:
        row_tokens: Positions of a row.
        images_per_row: Pictures of a row.
        tokens_per_image: Positions of a picture.
        cut: Where a longer document may be cut: between sentences (and words where a sentence alone is longer),
            between words, which fills rows to the end, between items alone, or nowhere. A conversation is cut between
            turns, if anywhere.
        template: In whose words conversations will stand in it.
    """

    row_tokens: int
    images_per_row: int
    tokens_per_image: int
    cut: How = "sentences"
    template: template.Template = template.OURS


def cut(items: Items, tokenizer: Tokenizer, limits: Limits) -> tuple[list[Items], list[str]]:
    """The pieces of a document in order, and for each part that fits no row the reason why it was left out.

    A document that fits comes back whole. One with text that is only read (``learn=False``) is a conversation.
    """
    last = items[-1]
    closed = isinstance(last, Text) and last.end
    pieces = _Pieces(tokenizer, limits, limits.row_tokens - 1 if closed else limits.row_tokens - 2)
    if pieces.cost(items) <= pieces.free and _pictures(items) <= limits.images_per_row:
        return [items], []
    if limits.cut == "never":
        return [], ["document longer than a row"]
    if any(isinstance(item, Text) and not item.learn for item in items):
        _cut_conversation(items, pieces)
    else:
        pieces.free = limits.row_tokens - 2  # its pieces need an end token, even if the document has its own
        _cut_document(items, pieces)
    pieces.close()
    return pieces.done, pieces.lost


class _Pieces:
    """Pieces filled one after the other; ``free`` positions of a row are for items, the others for begin and end."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits, free: int) -> None:
        self.count, self.spelling, self.limits, self.free = tokenizer.count, tokenizer.spelling, limits, free
        self.done: list[Items] = []
        self.lost: list[str] = []
        self.open: list[Text | Image] = []
        self.used = 0

    def cost(self, items: Sequence[Text | Image]) -> int:
        """Positions that items take."""
        return sum(
            self.limits.tokens_per_image if isinstance(item, Image) else self.count(self.spelling(item)) + item.end
            for item in self.limits.template.spelled(items)
        )

    def room(self, pictures: Sequence[Image]) -> int:
        """Positions left in the open piece for text after these pictures; negative where the pictures do not fit."""
        if _pictures(self.open) + len(pictures) > self.limits.images_per_row:
            return -1
        return self.free - self.used - self.cost(pictures)

    def add(self, items: Sequence[Text | Image]) -> None:
        self.open += items
        self.used += self.cost(items)

    def close(self) -> None:
        if self.open:
            self.done.append(tuple(self.open))
        self.open, self.used = [], 0


def _pictures(items: Sequence[Text | Image]) -> int:
    return sum(isinstance(item, Image) for item in items)


def _cut_document(items: Items, pieces: _Pieces) -> None:
    pictures: list[Image] = []
    most = min(pieces.limits.images_per_row, pieces.free // pieces.limits.tokens_per_image)
    for item in items:
        if isinstance(item, Image):
            if len(pictures) == most:  # more in a run than a row takes
                _add_pictures(pictures, pieces)
                pictures = []
            pictures.append(item)
        else:
            _add_text(pictures, item, pieces)
            pictures = []
    _add_pictures(pictures, pieces)


def _add_pictures(pictures: list[Image], pieces: _Pieces) -> None:
    if pieces.room(pictures) < 0:
        pieces.close()
    pieces.add(pictures)


def _add_text(pictures: list[Image], item: Text, pieces: _Pieces) -> None:
    """Text with the pictures right before it: whole if a row takes it, else at least its first sentence with them."""
    whole: list[Text | Image] = [*pictures, item]
    tokens, how = pieces.cost(whole), pieces.limits.cut
    fits = pieces.room(pictures) >= pieces.cost([item])
    if fits or (tokens <= pieces.free and how != "words"):
        if not fits:
            pieces.close()
        pieces.open += whole
        pieces.used += tokens
        return
    if how == "items":
        _add_pictures(pictures, pieces)
        pieces.lost.append("text longer than a row")
        return
    rest = item.text.strip()
    while rest:
        head, tail = _head(rest, pieces.room(pictures), pieces, WORD if how == "words" else SENTENCE)
        if not head and not pieces.open:
            head, tail = _head(rest, pieces.room(pictures), pieces, WORD)
        if head:
            pieces.add([*pictures, Text(head, item.learn, item.end and not tail)])
            pictures, rest = [], tail
        elif pieces.open:
            pieces.close()
        elif pictures:  # they leave no room for a word
            pieces.add(pictures)
            pictures = []
        else:
            pieces.lost.append("word longer than a row")
            rest = rest[WORD.match(rest).end() :]  # type: ignore[union-attr]


def _head(text: str, room: int, pieces: _Pieces, part: re.Pattern[str]) -> tuple[str, str]:
    """As many leading parts of ``text`` as take at most ``room`` positions, one of them for an end token; the rest."""
    ends, tokens = [], 1
    window = text[: WINDOW * max(room, 1)]
    for match in part.finditer(window):
        if tokens + pieces.count(match[0].rstrip()) > room or match.end() == len(window) < len(text):
            break
        tokens += pieces.count(match[0].rstrip(" "))  # white space counts once something follows it
        ends.append(match.end())
    while ends and pieces.count(text[: ends[-1]].strip()) + 1 > room:  # together they may take more than one by one
        ends.pop()
    return (text[: ends[-1]].strip(), text[ends[-1] :].strip()) if ends else ("", text)


def _cut_conversation(items: Items, pieces: _Pieces) -> None:
    asked = next(n for n, item in enumerate(items) if isinstance(item, Text) and not template.is_system(item))
    opening = items[:asked]
    turn: list[Text | Image] = []
    for number, item in enumerate(items[asked:], start=asked + 1):
        turn.append(item)
        if not (isinstance(item, Text) and item.end) and number < len(items):
            continue
        fresh = not pieces.open
        if not fresh and not _takes(turn, pieces):
            pieces.close()
            fresh = True
        whole = [*opening, *turn] if fresh else turn
        if _takes(whole, pieces):
            pieces.add(whole)
        else:
            pieces.lost.append("turn longer than a row")
        turn = []


def _takes(items: Sequence[Text | Image], pieces: _Pieces) -> bool:
    pictures = [item for item in items if isinstance(item, Image)]
    return pieces.room(pictures) >= pieces.cost([item for item in items if isinstance(item, Text)])
