"""Captions of COCO and Flickr30k as Karpathy split them, and of COCO as published.

``dataset_coco.json`` moves 30,504 pictures of COCO's val2014 to training under the name ``restval``; its 5,000 test
pictures are what MM1 and others report.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, check_row, rows
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

KARPATHY = r"dataset_(coco|flickr30k|flickr8k)\.json"
PUBLISHED = r"captions_(train2014|val2014|train2017|val2017)\.json"
TRAIN = ("train", "restval")
FOLDERS = {
    "coco": "images coco coco/images coco2014 mscoco",
    "flickr30k": "flickr30k-images flickr30k_images images flickr30k",
    "flickr8k": "Flicker8k_Dataset Flickr8k_Dataset images flickr8k",
}


def find(data: Data) -> list[Offer]:
    """``coco/karpathy-test`` and its like, ``coco/val2014`` and ``coco/val2017``."""
    found = []
    for name in data.splits(KARPATHY):
        for split in ("test", "val"):
            called = f"coco/karpathy-{split}" if name == "coco" else f"{name}/{split}"
            found.append(Offer(called, partial(_karpathy, data, name, split, called)))
    published = [split for split in data.splits(PUBLISHED) if split.startswith("val")]
    return found + [Offer(f"coco/{split}", partial(_published, data, split)) for split in published]


def _karpathy(data: Data, name: str, split: str, called: str) -> Task:
    file = data.splits(KARPATHY)[name]
    found = read_object(file, "a dataset as Karpathy split it")
    if (said := found.get("dataset", name)) != name:
        raise UserError(f"{file} has dataset {said!r}; expected {name!r}, as its name says")
    kept = list(rows(file, "images", {"filename": str, "split": str, "sentences": list}, found))
    if not any(row["split"] == split for row in kept):
        raise UserError(f"{file} has no picture of split {split}; expected some, as Karpathy's file has")
    if name == "coco" and not any(row["split"] == "restval" for row in kept):
        raise UserError(f"{file} has no picture of split restval; expected Karpathy's split of COCO, which has 30,504")
    names = [(f"{row.get('filepath') or '.'}/{row['filename']}", row["filename"]) for row in kept]
    pictures = data.placed((name,), file, names, FOLDERS[name])
    both = list(zip(kept, pictures, strict=True))
    queries = [_sentences(row, picture, file) for row, picture in both if row["split"] == split]
    check_ids((query.id for query in queries), file)
    pool = tuple(_sentences(row, picture, file) for row, picture in both if row["split"] in TRAIN)
    return Task(called, "captions", tuple(queries), pool, answer_field="caption", sources=(source(file),))


def _sentences(row: Any, picture: Path, file: Path) -> Query:
    for sentence in row["sentences"]:
        check_row(sentence, {"raw": str}, file, f"a sentence of {row['filename']}")
    captions = tuple(sentence["raw"] for sentence in row["sentences"])
    if not captions:
        raise UserError(f"{file} has no caption of {row['filename']}; expected at least one")
    id = row.get("cocoid", row.get("imgid", row["filename"]))
    return Query(str(id), picture, "", captions, captions[0].strip(), about={"result": {"image_id": id}})


def _published(data: Data, split: str) -> Task:
    files = data.splits(PUBLISHED)
    trained = files.get(split.replace("val", "train"))
    told = () if trained else (f"no captions_{split.replace('val', 'train')}.json: demonstrations are scored pictures",)
    pool = coco_captions(data, trained, ("coco",), FOLDERS["coco"]) if trained else ()
    return Task(
        f"coco/{split}",
        "captions",
        coco_captions(data, files[split], ("coco",), FOLDERS["coco"]),
        pool,
        told,
        answer_field="caption",
        sources=tuple(source(file) for file in (files[split], trained) if file),
    )


def coco_captions(data: Data, file: Path, benchmarks: tuple[str, ...], folders: str) -> tuple[Query, ...]:
    """Pictures with captions of a file in COCO's format; without captions where the file has no annotations.

    Raises:
        UserError: A file of the wrong shape, a caption of an unknown picture, a picture without one.
    """
    found = read_object(file, "captions in COCO's format")
    captions: dict[str, list[str]] = defaultdict(list)
    closed = "annotations" not in found
    for row in () if closed else rows(file, "annotations", {"image_id": ID, "caption": str}, found):
        captions[str(row["image_id"])].append(row["caption"])
    kept = list(rows(file, "images", {"id": ID, "file_name": str}, found))
    check_ids((str(row["id"]) for row in kept), file)
    if unknown := captions.keys() - {str(row["id"]) for row in kept}:
        raise UserError(f"{file} has captions for picture {min(unknown)}; expected only pictures among its images")
    folder = file.stem.rpartition("_")[2]
    for row in kept:
        if re.match("COCO_[a-z]+2014_", row["file_name"]) and not row["file_name"].startswith(f"COCO_{folder}_"):
            raise UserError(f"{file} has picture {row['file_name']}; expected those of {folder}, as its name says")
    pictures = data.placed(benchmarks, file, [_names(row, folder) for row in kept], folders)
    queries = []
    for row, picture in zip(kept, pictures, strict=True):
        given = tuple(captions[str(row["id"])])
        if not given and not closed:
            raise UserError(f"{file} has no caption for picture {row['id']}; expected at least one in annotations")
        groups = (row["domain"],) if isinstance(row.get("domain"), str) else ()
        about = {"result": {"image_id": row["id"]}}
        first = given[0].strip() if given else ""
        queries.append(Query(str(row["id"]), picture, "", given, first, groups=groups, about=about))
    return tuple(queries)


def _names(row: Any, folder: str) -> tuple[str, ...]:
    return (f"{folder}/{row['file_name']}", row["file_name"], f"{row.get('open_images_id', row['id'])}.jpg")
