"""TextVQA (Singh et al. 2019, arXiv 1904.08920), with and without the tokens that Rosetta read in the picture.

With them in the prompt a model scores points more; so they make a benchmark of another name, ``textvqa/val-ocr``,
worded as LLaVA words it. Test answers are not published.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_claims, check_ids, rows, strings
from eval.metrics.vqa import majority
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

QUESTIONS = r"TextVQA_0\.5\.1_(train|val|test)\.json"
OCR = r"TextVQA_Rosetta_OCR_v0\.2_(train|val|test)\.json"
FOLDERS = "textvqa train_val_images images"
HINT = "{question}\nReference OCR token: {tokens}"


def find(data: Data) -> list[Offer]:
    """``textvqa/val`` and ``textvqa/test``, and ``-ocr`` of each whose tokens are there."""
    read = data.splits(OCR)
    return [
        Offer(f"textvqa/{split}{suffix}", partial(_task, data, split, suffix))
        for split in data.splits(QUESTIONS)
        for suffix in ("", "-ocr")
        if split != "train" and (not suffix or split in read)
    ]


def _task(data: Data, split: str, suffix: str) -> Task:
    files, hints = data.splits(QUESTIONS), data.splits(OCR) if suffix else {}
    told = ["prompts hold Rosetta's OCR tokens (v0.2)" if suffix else "prompts hold no OCR tokens"]
    train = "train" in files and (not suffix or "train" in hints)
    if not train:
        lacks = "train tokens" if "train" in files else "train part"
        told.append(f"no {lacks} of TextVQA: demonstrations are scored questions, the query excluded")
    used = [
        file
        for name in (split, "train")
        for file in (files.get(name), hints.get(name))
        if file and (name == split or train)
    ]
    return Task(
        f"textvqa/{split}{suffix}",
        "vqa",
        _read(data, files[split], hints.get(split)),
        _read(data, files["train"], hints.get("train")) if train else (),
        tuple(told),
        metric="none" if split == "test" else "vqa_accuracy",
        sources=tuple(source(file) for file in used),
    )


def _read(data: Data, file: Path, hints: Path | None) -> tuple[Query, ...]:
    found = read_object(file, "a file of TextVQA")
    split = file.stem.rpartition("_")[2]
    check_claims(found, file, {"dataset_name": "textvqa", "dataset_version": "0.5", "dataset_type": split})
    asked = list(rows(file, "data", {"question_id": ID, "image_id": str, "question": str}, found))
    check_ids((str(row["question_id"]) for row in asked), file)
    for row in asked:
        check_claims(row, file, {"set_name": split}, f"question {row['question_id']}")
    tokens = _tokens(hints) if hints else {}
    folder = "test_images" if file.stem.endswith("test") else "train_images"
    names = [(f"{folder}/{row['image_id']}.jpg", f"{row['image_id']}.jpg") for row in asked]
    pictures = data.placed(("textvqa",), file, names, FOLDERS)
    queries = []
    for row, picture in zip(asked, pictures, strict=True):
        if hints and row["image_id"] not in tokens:
            raise UserError(f"{hints} has no tokens of picture {row['image_id']}; expected those of all of {file.name}")
        queries.append(_query(row, picture, file, tokens.get(row["image_id"])))
    return tuple(queries)


def _tokens(file: Path) -> dict[str, list[str]]:
    return {row["image_id"]: row["ocr_tokens"] for row in rows(file, "data", {"image_id": str, "ocr_tokens": list})}


def _query(row: Any, picture: Path, file: Path, tokens: list[str] | None) -> Query:
    closed = file.stem.endswith("test")
    given = () if closed else strings(row.get("answers"), file, f"question {row['question_id']}: answers")
    question = row["question"]
    if tokens is not None:
        question = HINT.format(question=question, tokens=", ".join(map(str, tokens)))
    about = {"result": {"question_id": row["question_id"]}}
    return Query(str(row["question_id"]), picture, question, given, majority(given) if given else "", about=about)
