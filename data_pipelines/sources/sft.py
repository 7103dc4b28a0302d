"""Instruction turns: ``sft/*.json``, LLaVA's format, with pictures relative to the corpus folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import WHOLE, WRONG_FIELDS, Draft, Place, Rejection, Source, Span, WrongFields
from mm1 import template
from mm1.errors import UserError
from mm1.runs import read_json
from mm1.sample import Text

MARKER = "<image>"


class Conversations(Source):
    """``[{"id", "image"?: path or paths, "conversations": [{"from": "human" | "gpt", "value"}, ..]}]``.

    ``<image>`` in a human turn says where a picture stands. At the edge of a turn the picture stands before
    ``User:``, as it does when people ask; inside, at its place. Without a marker the pictures open the conversation.
    """

    stream = "sft"
    pattern = "sft/*.json"

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        try:
            rows = read_json(path, "a JSON list of conversations")
        except UserError:
            yield Rejection(path.name, "file is no JSON")
            return
        for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
            place = f"{path.stem}:{number}"
            try:
                pictures, turns = self._pictures(path, row), _turns(row)
            except WrongFields:
                yield Rejection(place, WRONG_FIELDS)
                continue
            if not all(question.strip() and answer.strip() for question, answer in turns):
                yield Rejection(place, "empty turn")
            elif (markers := sum(question.count(MARKER) for question, _ in turns)) not in (0, len(pictures)):
                yield Rejection(place, "pictures and <image> markers do not match")
            else:
                group = self.group(pictures[0]) if pictures else f"{path.stem} {row.get('id', number)}"
                items = _items(turns, iter(pictures)) if markers else (*pictures, *_items(turns, iter(())))
                yield Draft(place, self.stream, items, group)

    def _pictures(self, path: Path, row: Any) -> list[Place]:
        if not isinstance(row, dict):
            raise WrongFields
        names = row.get("image") or []
        names = names if isinstance(names, list) else [names]
        return [self.picture(path, name, self.root) for name in names]


def _turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions with their answers."""
    values = []
    rows = row.get("conversations")
    for number, said in enumerate(rows if isinstance(rows, list) else []):
        match said:
            case {"from": who, "value": str(value)} if who == ("human", "gpt")[number % 2]:
                values.append(value)
            case _:
                raise WrongFields
    if not values or len(values) % 2:
        raise WrongFields
    return list(zip(values[::2], values[1::2], strict=True))


def _items(turns: list[tuple[str, str]], pictures: Iterator[Place]) -> tuple[Text | Place, ...]:
    items: list[Text | Place] = []
    for question, answer in turns:
        first, *parts = (part.strip() for part in question.split(MARKER))
        while parts and not first:  # markers before the question
            items.append(next(pictures))
            first, *parts = parts
        while parts and not parts[-1]:  # and after it
            items.append(next(pictures))
            parts.pop()
        asked, answered = template.turn(f" {MARKER} ".join([first, *parts]), answer)
        head, *tail = asked.text.split(MARKER)
        items.append(Text(head, learn=False))
        for part in tail:
            items += [next(pictures), Text(part, learn=False)]
        items.append(answered)
    return tuple(items)
