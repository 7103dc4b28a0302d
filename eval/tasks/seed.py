"""SEED-Bench (Li et al. 2023, arXiv 2307.16125): the image part, and the whole where frames of its videos are there.

``SEED-Bench.json`` of the release; pictures ``SEED-Bench-image/<data_id>``, and of each video its middle frame as
LLaVA extracts it, ``SEED-Bench-video-image/<question_id>.png``. The release ranks choices by likelihood
(``choosing: likelihood``); LLaVA and MM1's table ask for the letter, the default here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, rows
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError

LETTERS = "ABCD"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "question_id": ID,
    "data_id": ID,
    "data_type": str,
    "question": str,
    "answer": str,
}
FIELDS |= {f"choice_{letter.lower()}": ID for letter in LETTERS}
FRAMES = "SEED-Bench-video-image"


def find(data: Data) -> list[Offer]:
    """``seed/image``, and ``seed/all`` with a folder of frames."""
    path = data.one(r"SEED-Bench\.json")
    if path is None:
        return []
    offers = [Offer("seed/image", partial(_task, data, path, "image"))]
    if any((at / FRAMES).is_dir() for at in (path.parent, data.folder)) or "seed-video" in data.images:
        offers.append(Offer("seed/all", partial(_task, data, path, "all")))
    return offers


def _task(data: Data, path: Path, part: str) -> Task:
    found = list(rows(path, "questions", FIELDS))
    stills = [row for row in found if row["data_type"] == "image"]
    moving = [row for row in found if row["data_type"] != "image"] if part == "all" else []
    check_ids((str(row["question_id"]) for row in found), path)
    stand = data.placed(["seed"], path, [[str(row["data_id"])] for row in stills], "SEED-Bench-image")
    frames = data.placed(["seed-video"], path, [[f"{row['question_id']}.png"] for row in moving], FRAMES)
    queries = (_query(row, picture, path) for row, picture in zip([*stills, *moving], [*stand, *frames], strict=True))
    told = ("of each video one frame, the middle one where LLaVA's script made them",) if moving else ()
    return Task(
        f"seed/{part}", "choices", tuple(queries), (), told, metric="choice", choosing="letter", sources=(source(path),)
    )


def _query(row: Any, picture: Path, path: Path) -> Query:
    id, letter = str(row["question_id"]), row["answer"].strip()
    if letter not in tuple(LETTERS):  # nor nothing, nor two of them
        raise UserError(f"{path}: question {id} has answer {row['answer']!r}; expected one of A, B, C, D")
    choices = tuple(str(row[f"choice_{one.lower()}"]) for one in LETTERS)
    right = choices[LETTERS.index(letter)]
    groups = ("image" if row["data_type"] == "image" else "video", f"dimension {row.get('question_type_id', '?')}")
    about = {"letter": letter, "result": {"question_id": id}}
    return Query(id, picture, row["question"], (right,), right, choices=choices, groups=groups, about=about)
