"""ChartQA (Masry et al. 2022): questions people asked about charts, and questions made from their summaries.

``test_human.json`` and ``test_augmented.json`` of the release (``imgname``, ``query``, ``label``) with ``png/`` beside
them; ``train_*`` and ``val_*`` likewise. The score is the mean over all questions; both halves stand beside it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eval.files import ID, Data, rows
from eval.task import Offer, Query, Task, source

HALVES = ("human", "augmented")


def find(data: Data) -> list[Offer]:
    """``chartqa/test`` and ``chartqa/val``, where at least one half is."""
    offers = []
    for split in ("test", "val"):
        files = {half: data.one(rf"{split}_{half}\.json") for half in HALVES}
        if any(files.values()):
            train = {half: data.one(rf"train_{half}\.json") for half in HALVES}
            offers.append(Offer(f"chartqa/{split}", partial(_task, data, split, files, train)))
    return offers


def _task(data: Data, split: str, files: dict[str, Path | None], train: dict[str, Path | None]) -> Task:
    scored = tuple(query for half, path in files.items() if path for query in _queries(data, half, path))
    pool = tuple(query for half, path in train.items() if path for query in _queries(data, half, path))
    lacking = [half for half, path in files.items() if path is None]
    told = (f"without {lacking[0]}: ChartQA's number is over both halves",) if lacking else ()
    about = tuple(source(path) for path in (*files.values(), *train.values()) if path)
    return Task(f"chartqa/{split}", "vqa", scored, pool, told, metric="relaxed_accuracy", sources=about)


def _queries(data: Data, half: str, path: Path) -> list[Query]:
    found = list(rows(path, None, {"imgname": str, "query": str, "label": ID}))
    pictures = data.placed(["chartqa"], path, [[row["imgname"]] for row in found], "png")
    return [
        Query(f"{half}/{at}", picture, row["query"], (str(row["label"]),), str(row["label"]), groups=(half,))
        for at, (row, picture) in enumerate(zip(found, pictures, strict=True))
    ]
