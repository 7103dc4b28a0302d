"""A sheet of photographs with what a model said of them, good and bad, chosen by a rule so that nobody picks them.

Captions are ordered by CIDEr and shown from both ends and from the middle; answers to questions are right or wrong, so
of each kind the first are shown. Equal scores, and questions, are ordered by the SHA-256 of their id.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from html import escape
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
        out: The PNG; or a ``.md``, which shows the photographs where they are published and holds none itself.

    Raises:
        UserError: No such answers, fewer than a row needs, a picture that is not there, or for Markdown one without a
            published address and licence.
    """
    at_least(1, {"across": across})
    path = answers / "answers.jsonl" if answers.is_dir() else answers
    found, blind = _answers(path, task, shots)
    name, questions = found[0]["task"], any(answer.get("question") for answer in found)
    kinds = right_and_wrong(found, across) if questions else best_middle_worst(found, across)
    mean = sum(answer["score"] for answer in found) / len(found)
    metric, rule, key = KEYS["vqa_accuracy" if questions else "cider"]
    told = f"{shots}-shot, {metric} {mean:.1f}, n = {len(found)}. {key} {RULE.format(rule=rule)}"
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".md":
        out.write_text(linked(kinds, f"{shots}-shot, {metric} {mean:.1f}, n = {len(found)}", published(name, data)))
        print(out.resolve())
        return
    rows = [Row(kind.name, [_card(answer, blind, data) for answer in kind.answers]) for kind in kinds]
    draw(rows, title or task_title(name).capitalize(), told).save(out)
    print(out.resolve())
    credited = credits([answer for kind in kinds for answer in kind.answers], published(name, data))
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


@dataclass(frozen=True)
class Published:
    """Where a photograph is published, and under which licence."""

    address: str
    page: str
    licence: str
    licence_address: str


def published(task: str, data: Path | None) -> dict[str, Published]:
    """The photographs of a captioning benchmark by id, as far as its annotations say where they come from."""
    source = data / "captions_eval" / f"{task.partition('/')[2]}.json" if data else None
    if source is None or not task.startswith("captions/") or not source.is_file():
        return {}
    about = read_object(source, "captions in COCO's format")
    licences = {licence["id"]: licence for licence in about.get("licenses", ())}
    found = {}
    for image in about.get("images", ()):
        licence = licences.get(image.get("license"), {})
        if image.get("flickr_url") and licence.get("url"):
            page = image["flickr_url"]
            found[str(image["id"])] = Published(image.get("coco_url", page), page, licence["name"], licence["url"])
    return found


def credits(answers: list[dict[str, Any]], known: dict[str, Published]) -> str:
    """Where the photographs come from and under which licence, as Markdown; empty unless it is known of all."""
    ids = [str(answer["id"]) for answer in answers]
    if not all(id in known for id in ids):
        return ""
    lines = [(id, known[id]) for id in ids]
    return "".join(f"* [{id}]({of.page}), [{of.licence}]({of.licence_address}), scaled down\n" for id, of in lines)


def linked(kinds: list[Chosen], told: str, known: dict[str, Published]) -> str:
    """The sheet as Markdown for a page that must not hold the photographs: each is shown from where it is published.

    Raises:
        UserError: A photograph whose address or licence is not known.
    """
    lines = []
    for kind in kinds:
        width = 100 // len(kind.answers)
        lines += ["<tr>"]
        for answer in kind.answers:
            of = known.get(str(answer["id"]))
            if of is None:
                raise UserError(
                    f"no address and licence are known of {answer['image']}; expected coco_url or flickr_url and a "
                    f"license of it in the annotations under --data, or a PNG as --out"
                )
            shown = f'<a href="{of.page}"><img src="{of.address}"></a>'
            about = f'CIDEr {answer["score"]:.0f} · <a href="{of.licence_address}">licence</a>'
            said = escape(answer["answer"] or "(nothing)")
            lines += [f'<td width="{width}%" valign="top">{shown}<br>{said}<br><sub>{about}</sub></td>']
        lines += ["</tr>"]
    rows = ", ".join(kind.name[0].lower() + kind.name[1:] for kind in kinds)
    rule = RULE.format(rule=KEYS["cider"][1])
    return "\n".join(["<table>", *lines, "</table>", "", f"{told}. {rule} From top to bottom: {rows}.", ""])


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
