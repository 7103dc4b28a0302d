"""Instruction turns as chat messages (OpenAI, ms-swift), and as questions with answers (The Cauldron, FineVision)."""

from __future__ import annotations

from typing import Any

from data_pipelines.sources.base import WrongFields
from data_pipelines.sources.sft import ROLES, Dialogues, listed
from data_pipelines.sources.turns import Turn, marked

TEXTS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image")


class Messages(Dialogues):
    """``{"messages": [{"role", "content"}, ..], "images"?: [path, URL, data URL or base64, ..]}`` a row.

    A content is a text, in which ``<image>`` stands for the next of ``images``, or a list of texts and pictures.
    """

    def turns(self, row: dict[str, Any]) -> tuple[list[Turn], list[Any]]:
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise WrongFields
        beside, inside = listed(row.get("images")), []
        turns = []
        for message in messages:
            match message:
                case {"role": str(role), "content": str(text)} if role in ROLES:
                    turns.append(marked(ROLES[role], text))
                case {"role": str(role), "content": list(parts)} if role in ROLES:
                    turn, shown = _parts(role, parts, bool(beside))
                    turns.append(turn)
                    inside += shown
                case _:
                    raise WrongFields
        if beside and inside:
            raise WrongFields  # nothing says which of them comes first
        return turns, beside or inside


class Answered(Dialogues):
    """``{"images": [..], "texts": [{"user", "assistant"}, ..]}`` a row: The Cauldron, FineVision, nanoVLM.

    FineVision's ratings go into ``about``, so that a step can choose by them.
    """

    def turns(self, row: dict[str, Any]) -> tuple[list[Turn], list[Any]]:
        texts = row.get("texts")
        turns: list[Turn] = []
        for text in texts if isinstance(texts, list) else [None]:
            match text:
                case {"user": str(asked), "assistant": str(answered)}:
                    turns += [marked("user", asked), marked("assistant", answered)]
                case _:
                    raise WrongFields
        return turns, listed(row.get("images"))

    def about(self, row: dict[str, Any]) -> dict[str, Any]:
        ratings = {name: value for name, value in row.items() if name.endswith("_ratings")}
        return super().about(row) | ratings


def _parts(role: str, parts: list[Any], beside: bool) -> tuple[Turn, list[Any]]:
    """A turn made of parts, and the pictures in it; without any where they stand beside the messages."""
    texts, shown = [""], []
    for part in parts:
        match part:
            case {"type": str(kind), "text": str(text)} if kind in TEXTS:
                texts[-1] += text
            case {"type": str(kind), **about} if kind in PICTURES and ROLES[role] in ("user", "tool"):
                value = next((about[name] for name in (*PICTURES, "url", "path") if about.get(name)), None)
                if (value is None) != beside:
                    raise WrongFields
                shown += [] if value is None else [value]
                texts.append("")
            case _:
                raise WrongFields
    return Turn(ROLES[role], tuple(texts)), shown
