"""Documents of text and pictures in reading order: ``interleaved/*.jsonl``, one document a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Draft, Place, Rejection, Rows, WrongFields
from mm1.sample import Text


class Interleaved(Rows):
    """``{"id", "items": [{"type": "text", "text"} | {"type": "image", "image"}]}``.

    A picture that cannot be read is counted and left out, and the document stays as long as it has text: what an
    article says is mostly about more than one of its pictures.
    """

    stream = "interleaved"
    pattern = "interleaved/*.jsonl"

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        if items := self._items(path, row.get("items")):
            yield Draft(place, self.stream, items, str(row.get("id", place)), loose=True)
        else:
            yield Rejection(place, "empty document")

    def _items(self, path: Path, rows: Any) -> tuple[Text | Place, ...]:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise WrongFields
        items: list[Text | Place] = []
        for row in rows:
            match row:
                case {"type": "text", "text": str(text)}:
                    items += [Text(text)] if text.strip() else []
                case {"type": "image"}:
                    items.append(self.picture(path, row.get("image")))
                case _:
                    raise WrongFields
        return tuple(items)
