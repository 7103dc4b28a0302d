"""TextCaps (Sidorov et al. 2020, arXiv 2003.12462): captions that read the text in a picture, one row a caption."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_claims, rows, strings
from eval.task import Offer, Query, Task, source
from mm1.runs import read_object

FILES = r"TextCaps_0\.1_(train|val|test)\.json"
FOLDERS = "textcaps textvqa train_val_images images"


def find(data: Data) -> list[Offer]:
    """``textcaps/val`` and ``textcaps/test``, whose captions are not published."""
    return [Offer(f"textcaps/{split}", partial(_task, data, split)) for split in data.splits(FILES) if split != "train"]


def _task(data: Data, split: str) -> Task:
    files = data.splits(FILES)
    told = () if "train" in files else ("no train part of TextCaps: demonstrations are scored pictures",)
    return Task(
        f"textcaps/{split}",
        "captions",
        _read(data, files[split]),
        _read(data, files["train"]) if "train" in files else (),
        told,
        metric="none" if split == "test" else "",
        answer_field="caption",
        sources=tuple(source(files[name]) for name in (split, "train") if name in files),
    )


def _read(data: Data, file: Path) -> tuple[Query, ...]:
    found = read_object(file, "a file of TextCaps")
    split = file.stem.rpartition("_")[2]
    check_claims(found, file, {"dataset_name": "textcaps", "dataset_version": "0.1", "dataset_type": split})
    by_picture: dict[str, list[Any]] = {}
    for row in rows(file, "data", {"image_id": str}, found):
        check_claims(row, file, {"set_name": split}, f"picture {row['image_id']}")
        by_picture.setdefault(row["image_id"], []).append(row)
    closed = file.stem.endswith("test")
    folder = "test_images" if closed else "train_images"
    names = [(f"{folder}/{id}.jpg", f"{id}.jpg") for id in by_picture]
    pictures = data.placed(("textcaps", "textvqa"), file, names, FOLDERS)
    queries = []
    for (id, own), picture in zip(by_picture.items(), pictures, strict=True):
        given = () if closed else _captions(own, id, file)
        about = {"result": {"image_id": id}}
        queries.append(Query(id, picture, "", given, given[0].strip() if given else "", about=about))
    return tuple(queries)


def _captions(own: list[Any], id: str, file: Path) -> tuple[str, ...]:
    """The five references that every row of a picture repeats; its rows' own captions where a file has none."""
    if own[0].get("reference_strs"):
        return strings(own[0]["reference_strs"], file, f"picture {id}: reference_strs")
    return strings([row.get("caption_str") for row in own], file, f"picture {id}: caption_str")
