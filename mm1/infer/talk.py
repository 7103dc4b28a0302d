"""What a person asks, several turns, text and pictures in any order, as the items that a model was trained on.

The layout is that of instruction data (:mod:`mm1.template`, ``data_pipelines.sources.turns``): pictures that lead a
question stand before ``User:``, others where they are in it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import PIL.Image

from mm1.data.image import PictureError, decode
from mm1.errors import UserError
from mm1.sample import Image, Text
from mm1.template import USER, answer, system, turn

Picture = str | Path | bytes | PIL.Image.Image
Asked = str | Sequence[str | Path | bytes | PIL.Image.Image]
Template = Literal["chat", "none"]


def conversation(
    asked: Asked,
    before: Sequence[tuple[Asked, str]] = (),
    *,
    instructions: str = "",
    template: Template = "chat",
) -> list[Text | Image]:
    """A prompt.

    Args:
        asked: Text, or text and pictures in reading order. A ``str`` is text: a picture's path is a ``Path``.
        before: What was asked before and what was answered; demonstrations are given in the same way.
        instructions: The system turn; none if empty.
        template: ``chat``, or ``none``: everything as it is, one behind the other.

    Raises:
        UserError: A picture that is missing or does not decode, or no such template.
    """
    check_template(template)
    spell = _turn if template == "chat" else _plain
    items: list[Text | Image] = []
    if instructions.strip():
        items.append(system(instructions) if template == "chat" else Text(instructions))
    for question, said in before:
        items += spell(question, said)
    return [*items, *spell(asked, None)]


def check_template(name: str) -> None:
    """Refuse a template that is not there.

    Raises:
        UserError: Its name.
    """
    if name not in ("chat", "none"):
        raise UserError(f"template is {name!r}; expected chat or none")


def picture_bytes(picture: Picture) -> bytes:
    """The bytes of a picture's file, checked to decode, so that an error can name the picture.

    Raises:
        UserError: It is missing or does not decode.
    """
    if isinstance(picture, PIL.Image.Image):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        decode(data)
    except OSError as error:
        raise UserError(f"{name} is not readable ({error.strerror}); expected the file of a picture") from None
    except PictureError as error:
        raise UserError(f"{name} is not readable ({error}); expected the file of a picture") from None
    return data


def _items(asked: Asked) -> list[str | Image]:
    parts = [asked] if isinstance(asked, str) else asked
    return [part if isinstance(part, str) else Image(picture_bytes(part)) for part in parts]


def _plain(asked: Asked, said: str | None) -> list[Text | Image]:
    spoken = [*_items(asked), *([said] if said else [])]
    return [Text(item) if isinstance(item, str) else item for item in spoken if item != ""]


def _turn(asked: Asked, said: str | None) -> list[Text | Image]:
    parts = [part.strip() if isinstance(part, str) else part for part in _items(asked)]
    spoken_at = [at for at, part in enumerate(parts) if isinstance(part, str) and part]
    first, last = (spoken_at[0], spoken_at[-1]) if spoken_at else (len(parts), len(parts))
    inside = any(isinstance(part, Image) for part in parts[first:last])
    if not inside:  # pictures lead or follow: all stand before the question
        text = " ".join(part for part in parts if isinstance(part, str) and part)
        pictures: list[Text | Image] = [part for part in parts if isinstance(part, Image)]
        return [*pictures, *turn(text, said)]
    begin, end = USER.split("{text}")
    items: list[Text | Image] = [part for part in parts[:first] if isinstance(part, Image)]
    spoken = begin
    for part in parts[first:]:
        if isinstance(part, Image):
            items += [Text(spoken.rstrip() + " ", learn=False), part]
            spoken = ""
        else:
            spoken += f" {part}" if part and not spoken.endswith(begin) else part
    items.append(Text(spoken + end, learn=False))
    return [*items, *([] if said is None else [answer(said)])]
