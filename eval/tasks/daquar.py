"""DAQUAR (Malinowski and Fritz 2014, arXiv 1410.0210) from its own text files: a question a line, its answer below it.

what is behind the table in the image7 ?
window
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from eval.files import Data
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError

FILES = r"qa\.(37|894)\.raw\.(train|test)\.txt"
FOLDERS = "nyu_depth_images images daquar"
PICTURE = re.compile(r"\s*(?:in|on|of|from|at)?\s*(?:the\s+)?(image\d+)\s*\??\s*$")
ONE_ANSWER = "one annotated answer a question: the score is exact match after the official processing of VQA"


def find(data: Data) -> list[Offer]:
    """``daquar/37-test`` and ``daquar/894-test``, by the number of object classes."""
    kinds = [
        kind for kind in ("37", "894") if data.one(FILES.replace("(37|894)", kind).replace("(train|test)", "test"))
    ]
    return [Offer(f"daquar/{kind}-test", partial(_task, data, kind)) for kind in kinds]


def _task(data: Data, kind: str) -> Task:
    test, train = (
        data.one(FILES.replace("(37|894)", kind).replace("(train|test)", part)) for part in ("test", "train")
    )
    assert test is not None
    told = [ONE_ANSWER]
    if train is None:
        told.append("no train part of DAQUAR: demonstrations are scored questions, the query excluded")
    pool = _read(data, train) if train else ()
    used = tuple(source(file) for file in (test, train) if file)
    return Task(f"daquar/{kind}-test", "vqa", _read(data, test), pool, tuple(told), sources=used)


def _read(data: Data, file: Path) -> tuple[Query, ...]:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if len(lines) % 2:
        raise UserError(f"{file} has {len(lines)} lines; expected a question and its answer by turns")
    asked = []
    for number, (question, answer) in enumerate(zip(lines[::2], lines[1::2], strict=True), start=1):
        found = PICTURE.search(question)
        if found is None:
            raise UserError(
                f"{file}: question {number}, {question!r:.60}, names no picture; expected .. in the image7 ?"
            )
        asked.append((f"{file.stem}/{number}", found[1], question[: found.start()] + " ?", answer.replace("_", " ")))
    pictures = data.placed(("daquar",), file, [(f"{name}.png", f"{name}.jpg") for _, name, *_ in asked], FOLDERS)
    return tuple(
        Query(id, picture, question, (answer,), answer, about={"result": {"question_id": id}})
        for (id, _, question, answer), picture in zip(asked, pictures, strict=True)
    )
