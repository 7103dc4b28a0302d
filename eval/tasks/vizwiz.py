"""VizWiz-VQA (Gurari et al. 2018, arXiv 1802.08218): questions of blind people about photographs they took.

Its files are bare lists, one question a picture, without ids of questions or of answers: the picture's file name is the
question's id, and answers are left out by their place. Test answers are not published.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from eval.files import Data, check_ids, check_row, rows
from eval.metrics.vqa import majority
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError

FILES = r"(train|val|test)\.json"
FOLDERS = "images Images vizwiz VizWiz data"
START = 4096  # bytes in which a picture's name stands


def find(data: Data) -> list[Offer]:
    """``vizwiz/val`` and ``vizwiz/test``."""
    return [Offer(f"vizwiz/{split}", partial(_task, data, split)) for split in _files(data) if split != "train"]


def _files(data: Data) -> dict[str, Path]:
    return data.splits(FILES, _is_vizwiz)


def _is_vizwiz(file: Path) -> bool:
    """A list that soon names a picture of VizWiz: others have files of these names, too."""
    with file.open("rb") as start:
        head = start.read(START).lstrip()
    return head.startswith(b"[") and b"VizWiz_" in head and b'"question"' in head


def _task(data: Data, split: str) -> Task:
    files = _files(data)
    told = (
        ()
        if "train" in files
        else ("no train part of VizWiz: demonstrations are scored questions, the query excluded",)
    )
    return Task(
        f"vizwiz/{split}",
        "vqa",
        tuple(_read(data, files[split], split)),
        tuple(_read(data, files["train"], "train")) if "train" in files else (),
        told,
        metric="none" if split == "test" else "vqa_accuracy",
        sources=tuple(source(files[name]) for name in (split, "train") if name in files),
    )


def _read(data: Data, file: Path, split: str) -> Iterable[Query]:
    asked = list(rows(file, None, {"image": str, "question": str}))
    check_ids((row["image"] for row in asked), file)
    names = [(f"{split}/{row['image']}", row["image"]) for row in asked]
    for row, picture in zip(asked, data.placed(("vizwiz",), file, names, FOLDERS), strict=True):
        if not row["image"].startswith(f"VizWiz_{split}_"):
            raise UserError(f"{file} has picture {row['image']}; expected those of VizWiz's {split} part")
        given: tuple[str, ...] = ()
        if split != "test":
            check_row(row, {"answers": list}, file, f"the question about {row['image']}")
            for answer in row["answers"]:
                check_row(answer, {"answer": str}, file, f"an answer about {row['image']}")
            given = tuple(answer["answer"] for answer in row["answers"])
            if not given:
                raise UserError(f"{file} has no answers about {row['image']}; expected ten")
        groups = (row["answer_type"],) if isinstance(row.get("answer_type"), str) else ()
        about = {"result": {"image": row["image"]}}
        yield Query(
            row["image"], picture, row["question"], given, majority(given) if given else "", groups=groups, about=about
        )
