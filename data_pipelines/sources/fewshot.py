"""Few-shot documents: several pictures of one kind, each with its text, so that a demonstration has been seen before.

Documents of the web hold such runs by nature; a small corpus of single captions and questions does not, and a model
trained on it has never seen a second picture. Some runs open with texts whose pictures are left out: Flamingo's way of
asking with 0 shots shows the form of an answer by two such texts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import WHOLE, Draft, Place, Rejection, Source, Span, WrongFields, json_lines
from data_pipelines.sources.questions import Questions
from mm1.sample import Text
from mm1.template import short_answer

SIZES = (2, 3, 4, 5, 6, 7, 8, 9)  # pictures of a document: the prompts of 1 to 8 shots
BUCKET = 64  # pictures that are neighbours in some order: a pass shuffles within, so that no pass repeats another
PASSES = 5  # how often every picture appears, each time in other company
BARE, BARE_SHARE = 2, 0.25  # so many texts without their picture open so many of the runs, as 0-shot prompts do


class _Runs(Source):
    """Joins entries about pictures into runs of :data:`SIZES`, :data:`PASSES` times."""

    stream = "fewshot"
    opt_in = True

    def entries(self, path: Path) -> dict[Place, list[tuple[Text, ...]]]:
        """The texts of each picture of a file."""
        raise NotImplementedError

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        found = self.entries(path)

        def texts(picture: Place, number: int) -> tuple[Text, ...]:
            return found[picture][number % len(found[picture])]

        place = "/".join(path.relative_to(self.root or path.parent).with_suffix("").parts)
        # pictures of one side of the validation split are neighbours here, as the split is by this hash too
        order = sorted(found, key=lambda picture: hashlib.sha256(self.group(picture).encode()).digest())
        for number in range(PASSES):
            chance = random.Random(f"{place}/{number}")
            buckets = [order[start : start + BUCKET] for start in range(0, len(order), BUCKET)]
            shuffled = [picture for bucket in buckets for picture in chance.sample(bucket, len(bucket))]
            taken = 0
            while taken < len(shuffled):
                run = shuffled[taken : taken + chance.choice(SIZES)]
                taken += len(run)
                bare = BARE if len(run) > BARE and chance.random() < BARE_SHARE else 0
                items: list[Text | Place] = []
                for at, picture in enumerate(run):
                    items += [picture] if at >= bare else []
                    items += texts(picture, number)
                yield Draft(f"{place}:{number}#{taken}", self.stream, tuple(items), self._first(run))

    def _first(self, run: Sequence[Place]) -> str:
        """The picture whose hash is lowest: if any picture of a run is held out, the run is."""
        return min(map(self.group, run), key=lambda group: hashlib.sha256(group.encode()).digest())


class CaptionRuns(_Runs):
    """``<image>caption`` and a newline, several times."""

    pattern = "captions/*.jsonl"

    def entries(self, path: Path) -> dict[Place, list[tuple[Text, ...]]]:
        """The captions of each picture; what is broken, :class:`Captions` has counted."""
        found: dict[Place, list[tuple[Text, ...]]] = {}
        for _, row in json_lines(path):
            captions: Any = row.get("captions") if row else None
            try:
                picture = self.picture(path, row.get("image") if row else None)
            except WrongFields:
                continue
            texts = [text.strip() for text in captions if isinstance(text, str)] if isinstance(captions, list) else []
            if texts := [text for text in texts if text]:
                found[picture] = [(Text(f"{text}\n"),) for text in texts]
        return found


class QuestionRuns(_Runs):
    """``<image>Question: q Short answer: a`` and a newline, several times."""

    pattern = Questions.pattern

    @classmethod
    def takes(cls, path: Path) -> bool:
        """The files of :class:`Questions`."""
        return Questions.takes(path)

    def entries(self, path: Path) -> dict[Place, list[tuple[Text, ...]]]:
        """The questions of each picture; what is broken, :class:`Questions` counts."""
        found: dict[Place, list[tuple[Text, ...]]] = {}
        for row in Questions(path, root=self.root).answered(path):
            if not isinstance(row, Rejection):
                found.setdefault(row[0], []).append(short_answer(row[1], row[2]))
        return found
