"""Captioning on files in COCO's format, demonstrations from caption files that are trained on (MM1, section 3.1)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from eval.pictures import check
from eval.task import Query, Task, check_ids, rows
from mm1.errors import UserError

UNTRAINED = ("_dev", "_val", "_test")


def find(data: Path) -> list[Task]:
    """One task for each ``captions_eval/*.json``.

    Raises:
        UserError: A file of the wrong shape, a caption of an unknown picture, a picture without caption, a missing
            picture.
    """
    files = sorted((data / "captions_eval").glob("*.json"))
    pool = demonstrations(data / "captions") if files else ()
    warning = () if pool else (f"no trained caption file in {data / 'captions'}: demonstrations are scored pictures",)
    return [Task(f"captions/{file.stem}", "captions", _queries(file), pool, warning) for file in files]


def demonstrations(folder: Path) -> tuple[Query, ...]:
    """Pictures of the ``*_train.jsonl`` files, or of all that are trained on where none is named so."""
    trained = [file for file in sorted(folder.glob("*.jsonl")) if not file.stem.endswith(UNTRAINED)]
    chosen = [file for file in trained if file.stem.split("_")[-1] == "train"] or trained
    return tuple(
        Query(f"{file.stem}/{row['image']}", file.parent / row["image"], "", tuple(row["captions"]), row["captions"][0])
        for file in chosen
        for row in rows(file, None, ["image", "captions"])
        if row["captions"]
    )


def _queries(file: Path) -> tuple[Query, ...]:
    captions: dict[str, list[str]] = defaultdict(list)
    for row in rows(file, "annotations", ["image_id", "caption"]):
        captions[str(row["image_id"])].append(row["caption"])
    queries = []
    for row in rows(file, "images", ["id", "path"]):
        given = captions.get(str(row["id"]))
        if given is None:
            raise UserError(f"{file} has no caption for picture {row['id']}; expected at least one in annotations")
        queries.append(Query(str(row["id"]), file.parent / row["path"], "", tuple(given), given[0]))
    unknown = captions.keys() - {query.id for query in queries}
    if unknown:
        raise UserError(f"{file} has captions for picture {min(unknown)}; expected only pictures among its images")
    check_ids(queries, file)
    check([query.picture for query in queries], file)
    return tuple(queries)
