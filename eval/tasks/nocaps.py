"""NoCaps (Agrawal et al. 2019, arXiv 1812.08658): captions of things that COCO's captions do not name.

Its domains are sub-scores, each scored as a set of its own, as is usual: CIDEr's weights come from its pictures alone.
It has no train part.
"""

from __future__ import annotations

from functools import partial

from eval.files import Data
from eval.task import Offer, Task, source
from eval.tasks.coco import coco_captions
from mm1.errors import UserError

DOMAINS = {"in-domain", "near-domain", "out-domain"}
FOLDERS = "images val validation nocaps nocaps/images test"
FILES = {"val": r"nocaps_val_4500_captions\.json", "test": r"nocaps_test_image_info\.json"}
NO_TRAIN = "NoCaps has no train part: demonstrations are scored pictures, the query excluded"


def find(data: Data) -> list[Offer]:
    """``nocaps/val``, and ``nocaps/test``, whose captions are not published."""
    return [Offer(f"nocaps/{split}", partial(_task, data, split)) for split, name in FILES.items() if data.one(name)]


def _task(data: Data, split: str) -> Task:
    file = data.one(FILES[split])
    assert file is not None
    queries = coco_captions(data, file, ("nocaps",), FOLDERS)
    if split == "val":
        for query in queries:
            if not set(query.groups) & DOMAINS:
                raise UserError(
                    f"{file}: picture {query.id} has no domain; expected NoCaps, with in-, near- and out-domain"
                )
    return Task(
        f"nocaps/{split}",
        "captions",
        queries,
        warnings=(NO_TRAIN,) if split == "val" else (),
        metric="" if split == "val" else "none",
        answer_field="caption",
        sources=(source(file),),
    )
