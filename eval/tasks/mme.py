"""MME (Fu et al. 2023, arXiv 2306.13394): 14 folders of pictures, two questions about each, to be answered yes or no.

Each subtask's folder holds pictures and ``<picture>.txt`` with two lines ``question<TAB>answer``; five of them have
``images/`` and ``questions_answers_YN/`` instead. Scored in points: perception up to 2000, cognition up to 800.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from eval.files import DEPTH, Data, text_lines
from eval.metrics.yes_no import COGNITION, PERCEPTION
from eval.task import Offer, Query, Task
from mm1.errors import UserError

SUBTASKS = (*PERCEPTION, *COGNITION)
PICTURES = (".jpg", ".png", ".jpeg")
TEXTS = "questions_answers_YN"


def find(data: Data) -> list[Offer]:
    """``mme`` where a folder holds folders of its subtasks."""
    roots = [
        Path(at)
        for at, folders, _ in os.walk(data.folder, followlinks=True)
        if len(Path(at).relative_to(data.folder).parts) < DEPTH and len(set(folders) & set(SUBTASKS)) >= 2
    ]
    if len(roots) > 1:
        raise UserError(f"{roots[0]} and {roots[1]} both hold subtasks of MME; expected one of them (--data)")
    return [Offer("mme", partial(_task, root)) for root in roots]


def _task(root: Path) -> Task:
    there = [name for name in SUBTASKS if (root / name).is_dir()]
    queries = tuple(query for name in there for query in _subtask(root / name))
    lacking = [name for name in SUBTASKS if name not in there]
    told = (f"without {', '.join(lacking)}: their points are missing",) if lacking else ()
    return Task("mme", "vqa", queries, (), told, metric="mme")


def _subtask(folder: Path) -> list[Query]:
    texts = folder / TEXTS if (folder / TEXTS).is_dir() else folder
    shown = folder / "images" if (folder / "images").is_dir() else folder
    queries = []
    for path in sorted(texts.glob("*.txt")):
        picture = next((at for end in PICTURES if (at := shown / f"{path.stem}{end}").is_file()), shown / path.stem)
        for number, line in enumerate(text_lines(path), start=1):
            if not line.strip():
                continue
            question, _, answer = (part.strip() for part in line.partition("\t"))
            if answer.lower() not in ("yes", "no"):
                raise UserError(f"{path}: line {number} is {line!r:.60}; expected a question, a tab, and Yes or No")
            id = f"{folder.name}/{path.stem}/{number}"
            queries.append(Query(id, picture, question, (answer.lower(),), answer, groups=(folder.name,)))
    if not queries:
        raise UserError(f"{folder} holds no question; expected *.txt with two lines each")
    return queries
