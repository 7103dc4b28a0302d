"""From the turns of a conversation, whatever format they stood in, to items: one spelling for all (``mm1.template``).

system "Be brief."   user "<image>\\nWhat is it?"   assistant "A cat."

Text("System: Be brief.\\n", learn=False)  picture  Text("User: What is it?\\nAssistant:", learn=False)
Text("A cat.", end=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipelines.sources.base import Place
from mm1 import template
from mm1.sample import PICTURE, Text

NOT_IN_ORDER = "turns are not in order"
EMPTY = "empty turn"
UNMATCHED = "pictures and <image> markers do not match"


class Unusable(ValueError):
    """A conversation that cannot be learned from. Its message is the reason, to be counted."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What someone said.

    Args:
        who: ``tool`` is what a tool answered; what calls it is a turn of the assistant.
        parts: Stretches of text; between each two of them stands a picture.
    """

    who: Literal["system", "user", "tool", "assistant"]
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """What was said, with a marker for each picture."""
        return PICTURE.join(self.parts)


def marked(who: Literal["system", "user", "tool", "assistant"], text: str) -> Turn:
    """A turn whose text says by ``<image>`` where pictures stand; only those who ask show pictures."""
    return Turn(who, tuple(text.split(PICTURE)) if who in ("user", "tool") else (text,))


def conversation(turns: Sequence[Turn], pictures: Sequence[Place]) -> tuple[Text | Place, ...]:
    """The items of a conversation.

    Pictures at the edge of a turn stand before ``User:``, as they do when people ask, others at their place. Where no
    turn says where pictures stand, they come before the first question.

    Raises:
        Unusable: Nothing is answered, an answer is missing or empty, or there are not as many pictures as places.
    """
    items: list[Text | Place] = []
    places = sum(len(turn.parts) - 1 for turn in turns)
    if places not in (0, len(pictures)):
        raise Unusable(UNMATCHED)
    left = iter(pictures)
    opening = [] if places else list(pictures)
    asked: Turn | None = None
    for turn in turns:
        if (turn.who == "assistant") != (asked is not None):
            raise Unusable(NOT_IN_ORDER)
        if turn.who == "system":
            items += [template.system(turn.text)] if turn.text.strip() else []
        elif not turn.text.strip():
            raise Unusable(EMPTY)
        elif asked is None:
            asked = turn
        else:
            items += [*opening, *_asked(asked, left), template.answer(turn.text)]
            opening, asked = [], None
    if asked or not any(turn.who == "assistant" for turn in turns):
        raise Unusable(NOT_IN_ORDER)
    return tuple(items)


def _asked(turn: Turn, pictures: Iterator[Place]) -> list[Text | Place]:
    items: list[Text | Place] = []
    first, *parts = (part.strip() for part in turn.parts)
    while parts and not first:  # pictures before the question
        items.append(next(pictures))
        first, *parts = parts
    if not any(parts):  # and after it, unless others stand inside: the order of pictures is never changed
        items += [next(pictures) for _ in parts]
        parts = []
    begin, end = (template.TOOL if turn.who == "tool" else template.USER).split("{text}")
    items.append(Text(f"{begin}{first}{' ' if parts else end}", learn=False))
    for left, part in enumerate(parts, start=1 - len(parts)):
        items += [next(pictures), Text(f" {part}{' ' if left else end}" if part or left else end, learn=False)]
    return items
