"""VQA v2 (Goyal et al. 2017, arXiv 1612.00837) and OK-VQA (Marino et al. 2019) from their files as published.

Both come as a file of questions and one of annotations, joined by ``question_id``, about pictures of COCO 2014. The
first version of VQA has files of the same names as OK-VQA; what stands in them tells the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_ids, check_row, rows
from eval.metrics.vqa import majority
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

SPLITS = {"train2014": "train", "val2014": "val", "test2015": "test", "test-dev2015": "test-dev"}
FOLDERS = "images coco coco/images coco2014 mscoco"
SPLIT = r"(train2014|val2014|test2015|test-dev2015)"
NAMES = {  # questions, annotations
    "vqav2": (rf"v2_OpenEnded_mscoco_{SPLIT}_questions\.json", rf"v2_mscoco_{SPLIT}_annotations\.json"),
    "okvqa": (rf"OpenEnded_mscoco_{SPLIT}_questions\.json", rf"mscoco_{SPLIT}_annotations\.json"),
}
PUBLISHED = {"vqav2": "VQA v2.0", "okvqa": "OK-VQA"}


def find(data: Data) -> list[Offer]:
    """``vqav2/val``, ``vqav2/test-dev``, ``vqav2/test`` and ``okvqa/val``, as far as there are questions."""
    return [
        Offer(f"{benchmark}/{SPLITS[split]}", partial(_task, data, benchmark, split))
        for benchmark, (questions, _) in NAMES.items()
        for split in data.splits(questions)
        if split != "train2014"
    ]


def _task(data: Data, benchmark: str, split: str) -> Task:
    questions, annotations = (data.splits(pattern) for pattern in NAMES[benchmark])
    closed = split.startswith("test")
    if not closed and split not in annotations:
        raise UserError(
            f"{questions[split]} stands without its annotations; expected a file named like "
            f"{NAMES[benchmark][1].replace(SPLIT, split)} in {data.folder}"
        )
    train = "train2014" in questions and "train2014" in annotations
    told = () if train else (f"no train part of {benchmark}: demonstrations are scored questions, the query excluded",)
    scored, used = _read(data, benchmark, questions[split], None if closed else annotations[split])
    pool: tuple[Query, ...] = ()
    if train:
        pool, more = _read(data, benchmark, questions["train2014"], annotations["train2014"])
        pool = tuple(replace(query, references=(query.answer,), versions={}) for query in pool)  # half of the memory
        used += more
    return Task(
        f"{benchmark}/{SPLITS[split]}",
        "vqa",
        scored,
        pool,
        told,
        metric="none" if closed else "okvqa" if benchmark == "okvqa" else "vqa_accuracy",
        sources=tuple(used),
        submitted_as=f"{benchmark}/test" if split == "test-dev2015" else "",
    )


def _read(
    data: Data, benchmark: str, file: Path, annotations: Path | None
) -> tuple[tuple[Query, ...], list[dict[str, str]]]:
    """Questions, and what tells their files from others."""
    about = _claimed(file, benchmark)
    used, answered = [source(file, _version(about))], {}
    if annotations:
        found = _claimed(annotations, benchmark)
        used.append(source(annotations, _version(found)))
        answered = _answered(annotations, found, benchmark)
    fields = {"question_id": int, "image_id": int, "question": str}
    asked = list(rows(file, "questions", fields, about))
    check_ids((str(row["question_id"]) for row in asked), file)
    if annotations:
        _check_joined({row["question_id"] for row in asked}, set(answered), file, annotations)
    folder = str(about.get("data_subtype", "val2014")).replace("test-dev", "test")
    names = [f"COCO_{folder}_{row['image_id']:012d}.jpg" for row in asked]
    pictures = data.placed((benchmark, "coco"), file, [(f"{folder}/{name}", name) for name in names], FOLDERS)
    both = zip(asked, pictures, strict=True)
    return tuple(_query(row, answered.get(row["question_id"]), picture) for row, picture in both), used


def _version(found: Mapping[str, Any]) -> str:
    about = found.get("info")
    return str(about.get("version", "")) if isinstance(about, dict) else ""


def _claimed(file: Path, benchmark: str) -> dict[str, Any]:
    """The content of a file, if it is of this benchmark and split."""
    found = read_object(file, f"a file of {PUBLISHED[benchmark]}")
    split = next(split for split in sorted(SPLITS, key=len, reverse=True) if f"_{split}_" in file.name)
    said = found.get("data_subtype", split)
    if said != split:
        raise UserError(f"{file} has data_subtype {said!r}; expected {split!r}, as its name says")
    version = _version(found)
    if benchmark == "vqav2" and version and not version.startswith("2"):
        raise UserError(f"{file} is version {version} of VQA; expected 2.0")
    return found


def _answered(file: Path, found: dict[str, Any], benchmark: str) -> dict[int, Mapping[str, Any]]:
    types = found.get("question_types")
    answered = {}
    for number, row in enumerate(rows(file, "annotations", {"question_id": int, "answers": list}, found), start=1):
        if row["question_id"] in answered:
            raise UserError(f"{file} annotates question {row['question_id']} twice; expected every id once")
        needed = {"answer": str, "raw_answer": str} if benchmark == "okvqa" else {"answer": str}
        for answer in row["answers"]:
            if benchmark == "okvqa" and isinstance(answer, dict) and "raw_answer" not in answer:
                raise UserError(
                    f"{file} has no raw_answer, so it is VQA v1.0, which has files of that name too; expected OK-VQA"
                )
            check_row(answer, needed, file, f"an answer of entry {number}")
        if not row["answers"]:
            raise UserError(f"{file} has no answers to question {row['question_id']}; expected ten")
        answered[row["question_id"]] = row if not isinstance(types, dict) else {**row, "types": types}
    return answered


def _check_joined(asked: set[int], answered: set[int], file: Path, annotations: Path) -> None:
    if lost := answered - asked:
        raise UserError(
            f"{annotations} answers question {min(lost)} and {len(lost) - 1} others that {file.name} does not ask; "
            f"expected files of the same split and version"
        )
    if lost := asked - answered:
        raise UserError(f"{annotations} has no answers to question {min(lost)} of {file.name}")


def _query(row: Mapping[str, Any], annotated: Mapping[str, Any] | None, picture: Path) -> Query:
    about = {"result": {"question_id": row["question_id"]}}
    id = str(row["question_id"])
    if annotated is None:
        return Query(id, picture, row["question"], (), "", about=about)
    given = tuple(answer["answer"] for answer in annotated["answers"])
    raw = tuple(answer["raw_answer"] for answer in annotated["answers"] if "raw_answer" in answer)
    kind = annotated.get("types", {}).get(annotated.get("question_type")) or annotated.get("answer_type")
    return Query(
        id,
        picture,
        row["question"],
        given,
        majority(raw or given),
        groups=(str(kind),) if kind else (),
        versions={"raw_answer": raw} if raw else {},
        about=about,
    )
