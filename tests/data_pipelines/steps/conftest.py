"""Documents to put through steps, made in one line each."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

from data_pipelines.sources.base import Bytes, Draft, Rejection
from data_pipelines.steps import Pictures, Step
from mm1.sample import Text


def jpeg(picture: PIL.Image.Image, quality: int = 95, **settings: Any) -> bytes:
    """The bytes of its file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, **settings)
    return file.getvalue()


@pytest.fixture(scope="session")
def document() -> Callable[..., Draft]:
    """``document("text", picture, ...)``: strings become text, PIL images and bytes pictures."""

    def make(*items: str | bytes | PIL.Image.Image, id: str = "a:1", group: str = "g", **about: Any) -> Draft:
        parts: list[Any] = []
        for number, item in enumerate(items):
            if isinstance(item, str):
                parts.append(Text(item))
            else:
                parts.append(Bytes(f"{number}.jpg", item if isinstance(item, bytes) else jpeg(item)))
        return Draft(id, "stream", tuple(parts), group, loose=len(items) > 2, about=about)

    return make


@pytest.fixture(scope="session")
def reason() -> Callable[[Step, Draft], str]:
    """What a step says of a document: the reason of its rejection, empty where it stays as it is."""

    def say(step: Step, draft: Draft) -> str:
        found = step(draft, Pictures())
        if isinstance(found, Rejection):
            return found.reason
        assert found == draft
        return ""

    return say
