"""Instruction turns of LLaVA and ShareGPT (``sft/*.json``, ``*.jsonl``), and LLaVA-NeXT's mixes of such files."""

from __future__ import annotations

import math
import random
import re
import sys
from abc import abstractmethod
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from data_pipelines.picture_store import PictureStore
from data_pipelines.places import Remote, address_of, expand, local
from data_pipelines.sources.base import Draft, Place, Rejection, Rows, WrongFields
from data_pipelines.sources.lines import stem
from data_pipelines.sources.pictured import Pictured, scalars
from data_pipelines.sources.rows import rows
from data_pipelines.sources.text import ending
from data_pipelines.sources.turns import Turn, Unusable, conversation, marked
from mm1.errors import UserError

ROLES: dict[str, Literal["system", "user", "tool", "assistant"]] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("observation", "tool", "function", "tool_response"), "tool"),
}
"""Who speaks, by every name that ShareGPT, LLaMA-Factory, OpenAI and ms-swift have for them."""

UNREAD = ("video", "videos", "audio", "audios")


class Dialogues(Pictured, Rows):
    """What kinds of rows with turns share: one document a row, pictures in a list beside the turns or in them."""

    stream = "sft"

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        if unread := next((name for name in UNREAD if row.get(name)), None):
            yield Rejection(place, f"{unread.rstrip('s')} is not read", fault=False)
            return
        turns, values = self.turns(row)
        pictures: list[Place] = []
        for number, value in enumerate(values):
            found = self.shown(path, f"{place}#{number}", value)
            if isinstance(found, Rejection):
                yield found
                return
            pictures.append(found)
        try:
            items = conversation(turns, pictures)
        except Unusable as error:
            yield Rejection(place, str(error))
            return
        name = row["id"] if isinstance(row.get("id"), str | int) else place.rpartition(":")[2]
        group = self.group(pictures[0]) if pictures else f"{stem(path)} {name}"
        yield Draft(place, self.stream, items, group, about=self.about(row))

    @abstractmethod
    def turns(self, row: dict[str, Any]) -> tuple[list[Turn], list[Any]]:
        """The turns of a row, and its pictures as :meth:`Pictured.shown` takes them.

        Raises:
            WrongFields: It has not the fields of its kind.
        """

    def about(self, row: dict[str, Any]) -> dict[str, Any]:
        """What a row says of itself."""
        return scalars(row, "image", "system", "tools")


class Conversations(Dialogues):
    """``{"image"?: one or several, "conversations": [{"from", "value"}, ..], "system"?, "tools"?}`` a row.

    ``<image>`` in a human turn says where a picture stands; without any the pictures open the conversation. All names
    for who speaks are known (:data:`ROLES`). Rows with a video are left out and counted.
    """

    pattern = "sft/*"

    @classmethod
    def takes(cls, path: Path) -> bool:
        return ending(path) in (".json", ".jsonl")

    def turns(self, row: dict[str, Any]) -> tuple[list[Turn], list[Any]]:
        said = [_said(turn) for turn in listed(row.get("conversations"))]
        first = [text for text in (row.get("system"), row.get("tools")) if isinstance(text, str) and text.strip()]
        if first:
            said.insert(0, marked("system", "\n".join(first)))
        return said, listed(row.get("image")) + listed(row.get("images"))


class Mix(Conversations):
    """LLaVA-NeXT's list of files with shares: ``datasets: [{json_path, sampling_strategy}]``.

    A strategy is ``all``, or ``first``, ``end`` or ``random`` with a number of rows or a share: ``random:10%``. Rows
    that it does not take are counted.

    Args:
        files: YAML files; paths in them are taken as they are, or from the YAML file's folder.
        root: As for every source.
        stream: As for every source.
        pictures: As for :class:`Pictured`.
        seed: Which rows ``random`` takes.
    """

    pattern = ""

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        pictures: PictureStore | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(files, root=root, stream=stream, pictures=pictures)
        self.seed = seed
        self._taken: dict[Path | Remote, list[Container[int] | str]] = {}

    def files(self) -> list[Path | Remote]:
        """The files that the YAML files name.

        Raises:
            UserError: A YAML file is not that, or a strategy is none.
        """
        self._taken = {}
        for given in super().files():
            for name, strategy in _datasets(local(given)):
                beside = name if "://" in name else str(local(given).parent / name)
                for file in expand([beside]):
                    self._taken.setdefault(file, []).append(strategy)
        return list(self._taken)

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        if self._takes(path, int(place.rpartition(":")[2])):
            yield from super().documents(path, place, row)
        else:
            yield Rejection(place, "row is not in the mix's sample", fault=False)

    def _takes(self, path: Path, number: int) -> bool:
        if not self._taken:
            self.files()
        chosen = self._taken[address_of(path) or path]
        for at, strategy in enumerate(chosen):
            if isinstance(strategy, str):
                chosen[at] = strategy = _sample(strategy, path, self.seed)
            if number in strategy:
                return True
        return False


def _said(turn: Any) -> Turn:
    match turn:
        case {"from": str(who), "value": str(text)} if who in ROLES:
            return marked(ROLES[who], text)
    raise WrongFields


def listed(value: Any) -> list[Any]:
    """A list as it is, one thing as a list of it, nothing as an empty one."""
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


STRATEGY = re.compile(r"all|(first|end|random):(\d+)(%?)")


def _datasets(path: Path) -> list[tuple[str, str]]:
    try:
        listed = yaml.safe_load(path.read_bytes())["datasets"]
        found = [(one["json_path"], str(one.get("sampling_strategy", "all"))) for one in listed]
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        found = [("", "")]
    for name, strategy in found:
        if not isinstance(name, str) or not name or not STRATEGY.fullmatch(strategy):
            raise UserError(
                f"{path} has {name!r} with {strategy!r}; expected datasets: [{{json_path, sampling_strategy}}] "
                "with all, or first, end or random and a number or a share such as random:10%"
            )
    return found


def _sample(strategy: str, path: Path, seed: int) -> Container[int]:
    """The numbers of the rows that a strategy takes; the first is 1."""
    found = STRATEGY.fullmatch(strategy)
    if not found or not found[1]:
        return range(1, sys.maxsize)
    total = max((number for number, _ in rows(path)), default=0)
    size = min(math.ceil(int(found[2]) * total / 100) if found[3] else int(found[2]), total)
    if found[1] == "random":
        return frozenset(random.Random(f"{seed} {path.name}").sample(range(1, total + 1), size))
    first = 1 if found[1] == "first" else total - size + 1
    return range(first, first + size)
