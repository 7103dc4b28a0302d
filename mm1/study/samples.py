"""Pictures with what was asked and what both models said, chosen by a rule so that nobody picks the good ones."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from mm1.runs import json_lines
from mm1.study.compare import Trained

SHOWN = 6  # of each task
SIDE_PX = 192
RULE = f"the first {SHOWN} of each task by SHA-256 of their id, right and wrong alike"


def samples(pair: tuple[Trained, Trained]) -> list[dict[str, Any]]:
    """Per evaluation and task a group of sample pictures, at the most shots that were scored.

    Returns:
        Groups ``evaluation, task, shots, items``; an item has ``image`` (a data URI), ``question``, ``prompt``,
        ``references`` and, by side ``a`` and ``b``, ``answer``, ``score`` and ``blind`` (the answer when the
        picture was swapped).
    """
    answers = {key: _answers(run) for key, run in zip("ab", pair, strict=True)}
    groups = []
    for evaluation, task in dict.fromkeys((*answers["a"], *answers["b"])):
        both = {key: answers[key].get((evaluation, task), {}) for key in "ab"}
        shots = max(shots for lines in both.values() for shots, _, _ in lines)
        ids = {id for lines in both.values() for at, arm, id in lines if (at, arm) == (shots, "sighted")}
        items = [_item(both, shots, id) for id in sorted(ids, key=lambda id: sha256(id.encode()).digest())[:SHOWN]]
        groups.append({"evaluation": evaluation, "task": task, "shots": shots, "items": items})
    return groups


def _answers(run: Trained) -> dict[tuple[str, str], dict[tuple[int, str, str], dict[str, Any]]]:
    """Answers of a run by (evaluation, task), then by (shots, arm, id)."""
    found: dict[tuple[str, str], dict[tuple[int, str, str], dict[str, Any]]] = defaultdict(dict)
    for path in sorted(run.folder.glob("eval/*/answers.jsonl")):
        for line in filter(None, json_lines(path)):  # the last may be cut short, if the evaluation was stopped
            found[path.parent.name, line["task"]][int(line["shots"]), line["arm"], str(line["id"])] = line
    return found


def _item(both: dict[str, dict[tuple[int, str, str], dict[str, Any]]], shots: int, id: str) -> dict[str, Any]:
    lines = {key: answers[shots, "sighted", id] for key, answers in both.items() if (shots, "sighted", id) in answers}
    one = next(iter(lines.values()))
    item = {key: one.get(key) for key in ("question", "prompt", "references")} | {
        "id": id,
        "image": picture(one["image"]),
    }
    for key, line in lines.items():
        blind = both[key].get((shots, "blind", id))
        item[key] = {"answer": line["answer"], "score": line["score"], "blind": blind and blind["answer"]}
    return item


def picture_file(path: str | Path, data: Path | None = None) -> Path | None:
    """Where a picture is: at its path, or under ``data`` at the longest end of its path that is there; else None."""
    path = Path(path)
    under = [data.joinpath(*path.parts[at:]) for at in range(1, len(path.parts))] if data else []
    return next((place for place in (path, *under) if place.is_file()), None)


def picture(path: str | Path) -> str | None:
    """A small JPEG of the picture as a data URI, or None where it is gone or broken."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE_PX, SIDE_PX))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL makes of a broken one
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
