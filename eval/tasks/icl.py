"""Made-up words: can the model use a word that only earlier pictures of the same prompt define?

    <picture A> This is a dako. <picture B> This is a wupi. <picture like A> What is this?      dako or wupi

Its blind arm moves the defining pictures to one another's words and leaves the picture asked about: who reads the
definitions then answers the other word, who only guesses scores the same in both arms. "Closed-ended interleaved
evaluation" in the manner of Frozen (Tsimpoukelli et al. 2021, section 4.2).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from eval.files import ID, Data, check_ids, rows, strings
from eval.task import Offer, Query, Task
from mm1.errors import UserError


def find(data: Data) -> list[Offer]:
    """The task of ``icl/test.jsonl``, if there is one."""
    path = data.folder / "icl" / "test.jsonl"
    return [Offer("icl", partial(_task, path))] if path.exists() else []


def _task(path: Path) -> Task:
    queries = [_query(row, path) for row in rows(path, None, {"id": ID, "items": list, "question": str})]
    check_ids((query.id for query in queries), path)
    return Task("icl", "icl", tuple(queries))


def _query(row: Any, path: Path) -> Query:
    items = [_item(item, row, path) for item in row["items"]]
    if not items or not isinstance(items[-1], Path):
        raise UserError(f"{path}: row {row['id']} does not end with a picture that is asked about")
    answers = strings(row.get("answers"), path, f"answers of row {row['id']}")
    choices = strings(row["choices"], path, f"choices of row {row['id']}") if row.get("choices") else ()
    if choices and not set(answers) <= set(choices):
        raise UserError(f"{path}: row {row['id']} has choices {choices}; expected its answers {answers} among them")
    return Query(str(row["id"]), items[-1], row["question"], answers, answers[0], tuple(items[:-1]), choices)


def _item(item: Any, row: Any, path: Path) -> str | Path:
    match item:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image", "image": str(image)}:
            return path.parent / image
    raise UserError(f'{path}: row {row["id"]} has an item {item!r:.60}; expected {{"type": "text" or "image", ..}}')
