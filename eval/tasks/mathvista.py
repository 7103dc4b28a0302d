"""MathVista (Lu et al. 2023, arXiv 2310.02255): mathematics about pictures, asked with the release's own ``query``.

``testmini.json`` (an object by pid) with ``images/``, or ``testmini-00000-of-00001-*.parquet`` with pictures inside;
``test`` likewise, whose answers are not published. ``query`` has the question with the benchmark's hint ("Hint: Please
answer the question requiring an integer answer and provide the final value, ..").
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import Data, check_row
from eval.parquet import parquet_rows, picture_bytes
from eval.task import Offer, Query, Task, source
from eval.unpack import Unpacked
from mm1.errors import UserError
from mm1.runs import read_object

FIELDS = {"pid": str, "question": str, "image": str, "question_type": str, "answer_type": str}


def find(data: Data) -> list[Offer]:
    """``mathvista/testmini`` and ``mathvista/test``, the JSON rather than the parquet where both are."""
    offers = []
    for split, parquet in (("testmini", r"testmini-\d+-of-\d+.*\.parquet"), ("test", r"test-\d+-of-\d+.*\.parquet")):
        tables = [path for path in data.named(parquet) if "mathvista" in str(path.relative_to(data.folder)).lower()]
        path = data.one(rf"{split}\.json")
        if (path is not None and _is_ours(path)) or tables:
            files = [path] if path is not None and _is_ours(path) else tables
            offers.append(Offer(f"mathvista/{split}", partial(_task, data, split, files)))
    return offers


def _is_ours(path: Path) -> bool:
    """Many benchmarks have a test.json: this one's first object has a pid and an answer_type."""
    with path.open("rb") as file:
        start = file.read(4096)
    return b'"pid"' in start and b'"answer_type"' in start


def _task(data: Data, split: str, files: list[Path]) -> Task:
    queries = tuple(query for path in files for query in _queries(data, path))
    known = all(query.references for query in queries)
    told = ("answers are read by rules, the benchmark's own script asks a language model: see mm1-eval judge",)
    about = tuple(source(path) for path in files)
    metric = "mathvista" if known else "none"
    return Task(f"mathvista/{split}", "open", queries, (), told * known, metric=metric, sources=about)


def _queries(data: Data, path: Path) -> list[Query]:
    if path.suffix == ".parquet":
        unpacked = Unpacked(path)
        return [_query(row, _unpacked(row, unpacked, path), path) for row in parquet_rows(path, FIELDS)]
    found = read_object(path, "MathVista's questions by pid")
    rows = [{"pid": pid, **row} if isinstance(row, dict) else row for pid, row in found.items()]
    for row in rows:
        check_row(row, FIELDS, path, f"question {row.get('pid') if isinstance(row, dict) else row}")
    names = [[row["image"], Path(row["image"]).name] for row in rows]
    pictures = data.placed(["mathvista"], path, names, ". images")
    return [_query(row, picture, path) for row, picture in zip(rows, pictures, strict=True)]


def _unpacked(row: dict[str, Any], unpacked: Unpacked, path: Path) -> Path:
    data = picture_bytes(row.get("decoded_image"))
    if data is None:
        raise UserError(f"{path}: question {row['pid']} has no decoded_image; expected its picture there")
    return unpacked.path(data)


def _query(row: dict[str, Any], picture: Path, path: Path) -> Query:
    choices = [str(choice) for choice in row.get("choices") or ()]
    if row["question_type"] == "multi_choice" and not choices:
        raise UserError(f"{path}: question {row['pid']} is of multiple choice and has no choices")
    answer = row.get("answer")
    right = () if answer in (None, "") else (str(answer),)
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    groups = [row["question_type"], row["answer_type"]]
    groups += [str(metadata[name]) for name in ("task", "context") if metadata.get(name)]
    skills = metadata.get("skills")
    groups += [str(skill) for skill in skills] if isinstance(skills, list) else []
    about = {
        "question_type": row["question_type"],
        "answer_type": row["answer_type"],
        "precision": int(row.get("precision") or 0),
        "choices": choices,
        "result": {"pid": row["pid"]},
    }
    question = str(row.get("query") or row["question"])
    said = right[0] if right else ""
    return Query(row["pid"], picture, question, right, said, groups=tuple(dict.fromkeys(groups)), about=about)
