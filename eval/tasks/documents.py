"""DocVQA (Mathew et al. 2021, 2007.00398) and InfographicVQA (2104.12756): written answers, scored by ANLS.

``val_v1.0.json`` or ``val_v1.0_withQT.json`` with ``documents/``, and ``infographicsVQA_val_v1.0.json`` (also
``_withQT``) with its pictures; likewise ``train`` for demonstrations and ``test``, whose answers are not published.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_claims, check_ids, rows, strings
from eval.metrics.vqa import majority
from eval.task import Offer, Query, Task, source
from mm1.errors import UserError
from mm1.runs import read_object

NAME = r"(spdocvqa_qas_|infographicsVQA_)?({split})_v1\.0(_withQT)?\.json"
FOLDERS = {
    "docvqa": "documents . spdocvqa_images images",
    "infovqa": "infographicsvqa_images infographicsVQA_images images",
}


def find(data: Data) -> list[Offer]:
    """``docvqa/val``, ``infovqa/val`` and the tests, where their files are."""
    offers: dict[str, Offer] = {}
    for path in data.named(NAME.format(split="val|test")):
        split = _parts(path)[1]
        name = f"{_benchmark(path)}/{split}"
        if name in offers:
            raise UserError(f"{path} and another file in {data.folder} both hold {name}; expected one of them (--data)")
        train = _train(path)
        offers[name] = Offer(name, partial(_task, data, name, path, train))
    return list(offers.values())


def _parts(path: Path) -> tuple[str, str]:
    found = re.fullmatch(NAME.format(split="val|test|train"), path.name)
    assert found is not None
    return found[1] or "", found[2]


def _benchmark(path: Path) -> str:
    return "infovqa" if _parts(path)[0].startswith("infographics") else "docvqa"


def _train(path: Path) -> Path | None:
    beside = [at for at in sorted(path.parent.glob("*.json")) if re.fullmatch(NAME.format(split="train"), at.name)]
    return next((at for at in beside if _benchmark(at) == _benchmark(path)), None)


def _task(data: Data, name: str, path: Path, train: Path | None) -> Task:
    scored, pool = _queries(data, path), _queries(data, train) if train else ()
    known = all(query.references for query in scored)
    if not known and any(query.references for query in scored):
        raise UserError(
            f"{path} has answers to some questions only; expected them to all, or to none as in a test part"
        )
    files = tuple(source(file) for file in (path, train) if file)
    return Task(name, "vqa", scored, pool, metric="anls" if known else "none", sources=files)


def _queries(data: Data, path: Path) -> tuple[Query, ...]:
    benchmark = _benchmark(path)
    field = "image_local_name" if benchmark == "infovqa" else "image"
    about, split = read_object(path, "questions about documents"), _parts(path)[1]
    check_claims(about, path, {"dataset_split": split})
    found = list(rows(path, "data", {"questionId": ID, "question": str, field: str}, about))
    for row in found:
        check_claims(row, path, {"data_split": split}, f"question {row['questionId']}")
    names = [[row[field], Path(row[field]).name] for row in found]
    pictures = data.placed([benchmark], path, names, FOLDERS[benchmark])
    check_ids((str(row["questionId"]) for row in found), path)
    return tuple(_query(row, picture, path) for row, picture in zip(found, pictures, strict=True))


def _query(row: Any, picture: Path, path: Path) -> Query:
    id = str(row["questionId"])
    given = strings(row["answers"], path, f"answers of question {id}") if row.get("answers") else ()
    kinds = row.get("question_types") or row.get("answer_type") or ()
    groups = tuple(str(kind) for kind in kinds) if isinstance(kinds, list) else ()
    answer = majority(given) if given else ""
    about = {"result": {"questionId": row["questionId"]}}
    return Query(id, picture, row["question"], given, answer, groups=groups, about=about)
