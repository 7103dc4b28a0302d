"""Keeping the words of evaluations out of training: questions, answers and captions, after GPT-3 (arXiv 2005.14165, C).

    "A brown dog runs across the wide green field and catches the red ball again"     15 words: three 13-grams
    "A brown dog runs across the wide green field"                                     9 words: sought whole
    "What are the objects on the table close to the wall?"                            11 words, a question: not sought

A short question is asked of many pictures and tells nothing of where it is from; what is scored there is the picture,
and pictures are kept out by what they show (``mm1.data.fingerprint``). Of 956 documents of train questions, a third
would go if questions of 8 words were sought, and 2 go as it is; of 7,411 captions 2.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Draft, Rejection, json_lines
from data_pipelines.steps.base import Pictures, Step
from data_pipelines.steps.duplicates import words_of
from data_pipelines.steps.settings import in_order, lines, there
from mm1.errors import UserError, at_least
from mm1.runs import read_json

SETS = ("captions_eval/*.json", "vqa/*/*.json", "vqa/*/*.jsonl", "icl/*.jsonl")  # of a raw corpus folder
WORDED = ("question", "answer", "answers", "caption", "captions", "choices", "text", "multiple_choice_answer")
TRAINED = "train"  # how the name of a part begins that may be trained on


class ScoredText(Step):
    """Refuses documents that hold ``ngram`` words of a scored text in a row; capitals and punctuation do not matter.

    GPT-3 takes the length for each set from its shortest examples, between 8 and 13. Here a text of fewer words than
    ``ngram`` is sought whole, unless it has fewer than ``shortest`` or ends with a question mark.

    Args:
        scored: Files of scored sets (COCO captions, VQA v2, JSON lines; a ``*.txt`` file is a text a line), or raw
            corpus folders, of which the scored sets are read.
        ngram: Words in a row that are too many.
        shortest: Words of the shortest text that is sought.
    """

    def __init__(self, scored: Sequence[Path], *, ngram: int = 13, shortest: int = 8) -> None:
        at_least(1, {"shortest": shortest})
        in_order("shortest", shortest, "ngram", ngram)
        self.scored, self.ngram, self.shortest = there("scored", scored), ngram, shortest
        if not (files := [file for path in self.scored for file in scored_files(path)]):
            raise UserError(f"scored names {', '.join(map(str, scored)) or 'nothing'}; expected scored sets in there")
        self.files = tuple(files)

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        sought, words = _sought(self.files, self.ngram, self.shortest), words_of(draft.text)
        for at in range(len(words) - self.shortest + 1):
            for run in sought.get(" ".join(words[at : at + self.shortest]), ()):
                if tuple(words[at : at + len(run)]) == run:
                    return Rejection(draft.id, "text is scored", fault=False)
        return draft


def scored_files(path: Path) -> list[Path]:
    """The file itself, or the scored files of a raw corpus folder, in order."""
    if path.is_file():
        return [path]
    found = (file for pattern in SETS for file in sorted(path.glob(pattern)))
    return [file for file in found if not file.name.startswith(TRAINED)]


def scored_texts(path: Path) -> Iterator[str]:
    """Every question, answer and caption of a scored file.

    Raises:
        UserError: It cannot be read; its texts could not be kept out of training.
    """
    if path.suffix == ".txt":
        yield from lines(path)
    elif path.suffix == ".jsonl":
        for place, row in json_lines(path):
            if row is None:
                raise UserError(f"{path.parent / place} is no JSON object; expected a line of a scored set")
            yield from _texts(row)
    else:
        yield from _texts(read_json(path, "a scored set"))


def _texts(value: Any, worded: bool = False) -> Iterator[str]:
    """Whatever text stands under the names of :data:`WORDED`, however deep."""
    if isinstance(value, str):
        yield from [value] if worded else []
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, name in WORDED)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, worded)


@functools.cache
def _sought(files: tuple[Path, ...], ngram: int, shortest: int) -> dict[str, set[tuple[str, ...]]]:
    """The runs of words, by how they begin."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for text in (text for file in files for text in scored_texts(file)):
        words, question = words_of(text), text.rstrip().endswith(("?", "？"))
        for at in range(max(1, len(words) - ngram + 1) if len(words) >= (ngram if question else shortest) else 0):
            run = tuple(words[at : at + ngram])
            found.setdefault(" ".join(run[:shortest]), set()).add(run)
    return found
