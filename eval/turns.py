"""A question of texts and pictures as a turn of a chat, spelled as data_pipelines spells instruction data.

A picture, "What is this?"          picture  User: What is this?\\nAssistant:
"Here", a picture, "is what?"       User: Here  picture  is what?\\nAssistant:

Pictures at the edge of a turn stand before it; those inside stay at their place.
"""

from __future__ import annotations

from collections.abc import Sequence

from mm1 import template
from mm1.sample import Image, Text

Part = str | Image


def asked(parts: Sequence[Part]) -> list[Text | Image]:
    """The items of one user turn, up to where the assistant goes on.

    Args:
        parts: What is asked, in reading order; neighbouring texts are lines of one.
    """
    (first, *texts), pictures = _split(parts)
    items: list[Text | Image] = []
    while texts and not first:
        items.append(pictures.pop(0))
        first, *texts = texts
    if not any(texts):  # pictures at the end come before the turn too, unless others stand inside
        items, texts = [*items, *pictures], []
    begin, end = template.USER.split("{text}")
    items.append(Text(f"{begin}{first}{' ' if texts else end}", learn=False))
    for left, text in enumerate(texts, start=1 - len(texts)):
        after = f" {text}{' ' if left else end}" if text or left else end
        items += [pictures.pop(0), Text(after, learn=False)]
    return items


def _split(parts: Sequence[Part]) -> tuple[list[str], list[Image]]:
    """Texts, and the pictures that stand between each two of them."""
    texts, pictures = [""], []
    for part in parts:
        if isinstance(part, Image):
            pictures.append(part)
            texts.append("")
        else:
            texts[-1] = "\n".join(text for text in (texts[-1], part.strip()) if text)
    return texts, pictures
