"""A sheet of photographs with what a model said of them, good and bad, chosen by a rule so that nobody picks them.

Captions are ordered by CIDEr and shown from both ends and from the middle; answers to questions are right or wrong, so
of each kind the first are shown. Equal scores, and questions, are ordered by the SHA-256 of their id.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from mm1.errors import UserError, at_least
from mm1.runs import json_lines, read_object
from mm1.study.chapters import task_title
from mm1.study.samples import picture_file
from mm1.study.sheet import Card, Row, draw

NEEDED = {"task", "shots", "arm", "id", "image", "answer", "references", "score"}
RIGHT = 50  # percent; of ten people two
RULE = "Chosen by a rule and not by hand: {rule}, equals by the SHA-256 of their id."
KEYS = {
    "cider": ("mean CIDEr", "by CIDEr", "In bold the model, below it the nearest caption by a person."),
    "vqa_accuracy": ("accuracy in %", "the first right and the first wrong", "In bold the model."),
}


@dataclass(frozen=True)
class Chosen:
    """Answers of one kind: what they have in common, and the answers."""

    name: str
    answers: list[dict[str, Any]]


def grid(
    answers: Path,
    *,
    task: str | None = None,
    shots: int = 0,
    data: Path | None = None,
    across: int = 4,
    title: str | None = None,
    out: Path = Path("grid.png"),
) -> None:
    """Draw the sheet, and beside it the credits of its photographs where the data folder says them.

    Args:
        answers: ``answers.jsonl`` of an evaluation, or its folder.
        task: Which benchmark, such as ``captions/flickr8k_dev``; may be left out if there is one.
        shots: At how many demonstrations.
        data: Data folder, where the pictures are no longer where they were when the model was asked.
        across: Photographs in a row.
        title: Heading; by default the benchmark's name.
        out: The PNG.

    Raises:
        UserError: No such answers, fewer than a row needs, or a picture that is not there.
    """
    at_least(1, {"across": across})
    path = answers / "answers.jsonl" if answers.is_dir() else answers
    found, blind = _answers(path, task, shots)
    name, questions = found[0]["task"], any(answer.get("question") for answer in found)
    kinds = right_and_wrong(found, across) if questions else best_middle_worst(found, across)
    rows = [Row(kind.name, [_card(answer, blind, data) for answer in kind.answers]) for kind in kinds]
    mean = sum(answer["score"] for answer in found) / len(found)
    metric, rule, key = KEYS["vqa_accuracy" if questions else "cider"]
    told = f"{shots}-shot, {metric} {mean:.1f}, n = {len(found)}. {key} {RULE.format(rule=rule)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, title or task_title(name).capitalize(), told).save(out)
    print(out.resolve())
    credited = credits([answer for kind in kinds for answer in kind.answers], name, data)
    if credited:
        beside = out.with_suffix(".credits.md")
        beside.write_text(credited)
        print(beside.resolve())
    else:
        print("no licence is recorded for these photographs: a sheet to look at, not to pass on")


def best_middle_worst(answers: list[dict[str, Any]], across: int) -> list[Chosen]:
    """The ``across`` best by score, those around the median, and the worst; no answer twice."""
    order = sorted(answers, key=lambda answer: (-answer["score"], _hash(answer)))
    if len(order) < 3 * across:
        raise UserError(f"{len(order)} answers for 3 rows of {across}; expected at least {3 * across} (--across)")
    middle = (len(order) - across) // 2
    parts = {"best": order[:across], "around the median": order[middle : middle + across], "worst": order[-across:]}
    return [Chosen(f"The {across} {name}", part) for name, part in parts.items()]


def right_and_wrong(answers: list[dict[str, Any]], across: int) -> list[Chosen]:
    """Of right answers and of wrong ones the first ``across``, each about another picture."""
    kinds: list[Chosen] = []
    shown: set[str] = set()
    for name, of in (("Right", lambda score: score >= RIGHT), ("Wrong", lambda score: score < RIGHT)):
        kind = sorted((answer for answer in answers if of(answer["score"])), key=_hash)
        picked: list[dict[str, Any]] = []
        for answer in kind:
            if answer["image"] not in shown and len(picked) < across:
                shown.add(answer["image"])
                picked.append(answer)
        if picked:
            kinds.append(Chosen(f"{name}, {100 * len(kind) / len(answers):.0f} % of all", picked))
    return kinds


def nearest(answer: str, references: list[str]) -> str:
    """The reference that shares most words with an answer (F1 of the sets), the first of equals."""
    said = set(answer.lower().split())

    def shared(reference: str) -> float:
        words = set(reference.lower().strip(" .").split())
        return 2 * len(said & words) / max(1, len(said) + len(words))

    return max(references, key=shared)


def credits(answers: list[dict[str, Any]], task: str, data: Path | None) -> str:
    """Where the photographs come from and under which licence, as Markdown; empty unless the data says it of all."""
    source = data / "captions_eval" / f"{task.partition('/')[2]}.json" if data else None
    if source is None or not task.startswith("captions/") or not source.is_file():
        return ""
    about = read_object(source, "captions in COCO's format")
    licences = {licence["id"]: licence for licence in about.get("licenses", ())}
    images = {str(image["id"]): image for image in about.get("images", ())}
    lines = []
    for answer in answers:
        image = images.get(str(answer["id"]), {})
        licence = licences.get(image.get("license"))
        if not image.get("flickr_url") or not (licence and licence.get("url")):
            return ""
        lines.append(f"* [{answer['id']}]({image['flickr_url']}), [{licence['name']}]({licence['url']}), scaled down\n")
    return "".join(lines)


def _answers(path: Path, task: str | None, shots: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Sighted answers, and by id what was said when the picture was swapped."""
    if not path.is_file():
        raise UserError(f"{path} is no file; expected an answers.jsonl written by mm1-eval run")
    lines = [line for line in json_lines(path) if line and line.keys() >= NEEDED]
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    if task not in tasks and (task is not None or len(tasks) != 1):
        raise UserError(f"{path} has answers to {', '.join(tasks) or 'nothing'}; expected one of them as --task")
    mine = [line for line in lines if line["task"] == (task or tasks[0]) and line["shots"] == shots]
    sighted = [line for line in mine if line["arm"] == "sighted"]
    if not sighted:
        raise UserError(f"{path} has no sighted answers to {task or tasks[0]} at {shots} shots (--shots)")
    return sighted, {line["id"]: line["answer"] for line in mine if line["arm"] == "blind"}


def _card(answer: dict[str, Any], blind: dict[str, str], data: Path | None) -> Card:
    path = picture_file(answer["image"], data)
    if path is None:
        raise UserError(f"{answer['image']} is not there; expected the picture, or --data with a folder that holds it")
    said = answer["answer"] or "(nothing)"
    if not answer.get("question"):
        return Card(path, f"CIDEr {answer['score']:.0f}", said, (nearest(said, answer["references"]),))
    right = answer["score"] >= RIGHT
    notes = [] if right else [f"expected: {nearest(said, answer['references'])}"]
    if answer["id"] in blind:
        notes.append(f"with another picture: {blind[answer['id']] or '(nothing)'}")
    return Card(path, "right" if right else "wrong", said, tuple(notes), answer["question"], right)


def _hash(answer: dict[str, Any]) -> bytes:
    return sha256(str(answer["id"]).encode()).digest()
