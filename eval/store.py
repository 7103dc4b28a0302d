"""Answers as they come, one line each, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mm1.errors import UserError
from mm1.runs import json_lines, read_object, spelled, write_json

Answer = dict[str, Any]  # docs/house.md, Scores, says what is in one
Key = tuple[str, int, str, str, int]

LISTS = ("references", "choices", "groups", "demonstrations", "dropped")  # of texts
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "arm", "id", "image", "answer", "question", "prompt", "shown", "metric"), str),
    **dict.fromkeys(("shots", "seed"), int),
    **dict.fromkeys(LISTS, list),
    **dict.fromkeys(("versions", "about"), dict),
    "score": (int, float, type(None)),
}
NEEDED = {"task", "shots", "arm", "id", "image", "answer", "references"}
MARKED = "asked.json"
LEAKS = "overlap.json"  # ids of questions that were trained on, by task
SCORED = "scores.json"
MARK = "what an earlier mm1-eval run noted of its questions; delete it to ask all of them again"


def key(answer: Answer) -> Key:
    """What names an answer: task, shots, arm, id, seed of its demonstrations; older ones were asked with one seed."""
    return answer["task"], answer["shots"], answer["arm"], answer["id"], answer.get("seed", 0)


def fingerprint(*values: Any) -> str:
    """A name for plain values: equal values, equal name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Answers:
    """``answers.jsonl`` of one evaluation.

    Args:
        folder: The evaluation's folder; made if need be. None keeps answers in memory only.
        asked: Fingerprint of all that was asked. Answers to anything else are set aside, once :meth:`begin` says so, as
            ``answers-<fingerprint>.jsonl``, and their scores with them; asked again, they are taken up again.
        tokenizer: Fingerprint of the checkpoint's; a model of another one does not take the place of what is there.

    Raises:
        UserError: The folder has answers of a checkpoint with another tokenizer.
    """

    def __init__(self, folder: Path | None, asked: str, tokenizer: str = "") -> None:
        self._path = None if folder is None else folder / "answers.jsonl"
        self._asked: dict[str, Any] = {"asked": asked, "tokenizer": tokenizer}
        self.found: dict[Key, Answer] = {}
        if folder is None or self._path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / MARKED
        before = read_object(mark, MARK) if mark.exists() and self._path.exists() else {}
        if (theirs := before.get("tokenizer", tokenizer)) != tokenizer:
            raise UserError(
                f"{folder} holds answers of a checkpoint with tokenizer {theirs}, this one has {tokenizer}; expected "
                f"the same, or another folder (--out)"
            )
        self._other: str | None = None if before.get("asked") == asked else before.get("asked")
        kept = self._path if before.get("asked") == asked else self._aside(asked)
        if kept.exists():
            self.found = {key(answer): answer for answer in _whole_lines(kept)}

    def _aside(self, asked: str) -> Path:
        assert self._path is not None
        return _named(self._path, asked)

    def begin(
        self, tasks: Mapping[str, Mapping[str, Any]] | None = None, leaks: Mapping[str, Any] | None = None
    ) -> None:
        """Leave on disk what is kept and nothing else: called when all that can be refused has been.

        Args:
            tasks: By task its ``metric``, as it stands beside answers, and how many ``answers`` there will be.
            leaks: Ids of questions that were trained on, by task.
        """
        if self._path is None:
            return
        if self._other is not None and self._path.exists():
            for file in (self._path.with_name(SCORED), self._path.with_name(LEAKS), self._path):
                if file.exists():  # scores of other answers may not stand beside these
                    file.replace(_named(file, self._other))
        scored = self._path.with_name(SCORED)
        if not scored.exists() and (before := _named(scored, self._asked["asked"])).exists():
            before.replace(scored)  # and comes back with them
        write_json(self._path.with_name(MARKED), self._asked | ({"tasks": tasks} if tasks else {}))
        write_json(self._path.with_name(LEAKS), leaks or {})
        write_answers(self.found.values(), self._path)  # a line that a kill cut short goes, before another follows it
        self._aside(self._asked["asked"]).unlink(missing_ok=True)

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers; they are on disk when this returns."""
        answers = list(answers)
        self.found |= {key(answer): answer for answer in answers}
        if self._path is not None:
            with self._path.open("a") as lines:
                lines.writelines(map(_line, answers))


def _named(file: Path, asked: str) -> Path:
    """Where a file is set aside while another question is asked."""
    return file.with_name(f"{file.stem}-{asked}{file.suffix}")


def companion(answers: Path, name: str) -> Path:
    """The ``scores`` or ``overlap`` that belong to a file of answers: those set aside have theirs set aside."""
    stem = answers.stem
    return answers.with_name(f"{name}{stem.removeprefix('answers') if stem.startswith('answers') else f'-{stem}'}.json")


def answers_file(path: Path) -> Path:
    """The file of answers that a user named, or the one in the folder that was named."""
    return path / "answers.jsonl" if path.is_dir() else path


def write_answers(answers: Iterable[Answer], path: Path) -> None:
    """Replace a file of answers; a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(_line, answers)))
    temporary.replace(path)


def read_answers(path: Path) -> list[Answer]:
    """Answers of a file that a user named.

    Raises:
        UserError: There is no such file, nothing in it is an answer, a line other than the last is none, or an answer
            has something else in a field.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected an answers.jsonl written by mm1-eval run")
    lines = list(json_lines(path))
    answers = [answer for answer in lines if _whole(answer)]
    if not answers:
        raise UserError(f"{path} does not hold one answer a line; expected an answers.jsonl written by mm1-eval run")
    last_cut_short = lines[-1] is None
    if damaged := [at for at, line in enumerate(lines[: len(lines) - last_cut_short], start=1) if not _whole(line)]:
        raise UserError(
            f"{path}: line {damaged[0]} is no answer, {len(damaged)} of {len(lines)} are none; expected an "
            f"answers.jsonl written by mm1-eval run, which run again mends it"
        )
    for number, answer in enumerate(answers, start=1):
        if name := next(_wrong(answer), None):
            raise UserError(
                f"{path}: answer {number} has {name} = {answer[name]!r:.60}; expected an answers.jsonl written by "
                f"mm1-eval run"
            )
    return answers


def _wrong(answer: Answer) -> Iterator[str]:
    """Fields that hold something else than a run writes there."""
    for name, value in answer.items():
        right = isinstance(value, TYPES.get(name, object))
        if right and name in LISTS:
            right = _texts(value)
        elif right and name == "versions":
            right = all(isinstance(given, list) and _texts(given) for given in value.values())
        elif right and name == "score":
            right = value is None or math.isfinite(value)
        if not right:
            yield name


def _texts(value: list[Any]) -> bool:
    return all(isinstance(one, str) for one in value)


def read_mark(path: Path) -> dict[str, Any]:
    """What a run noted of each task it asks, from beside a file of answers; empty where nothing says so."""
    mark = path.with_name(MARKED)
    found = read_object(mark, MARK).get("tasks") if path.name == "answers.jsonl" and mark.exists() else None
    noted = found.items() if isinstance(found, dict) else ()
    return {task: about for task, about in noted if isinstance(about, dict) and about.keys() >= {"metric", "answers"}}


def check_metrics(answers: Sequence[Answer], path: Path) -> None:
    """Refuse answers that name another metric than the run that made them: somebody changed one of the two.

    Raises:
        UserError: The first such answer, or one that names another metric than others of its task.
    """
    noted = {task: about["metric"] for task, about in read_mark(path).items()}
    for answer in answers:
        named, task = answer.get("metric") or "", answer["task"]
        if named != (expected := noted.setdefault(task, named)):
            raise UserError(
                f"{path}: the answer to question {answer['id']} of {task} has metric {named or 'usual'!r}; expected "
                f"{expected or 'usual'!r}, with which it was made, or mm1-eval score with --data"
            )


def unfinished(answers: Sequence[Answer], path: Path) -> dict[str, str]:
    """By task, that a run has not given all its answers yet, so that a score is of some questions only."""
    there = Counter(answer["task"] for answer in answers)
    return {
        task: f"{there[task]} of {about['answers']} answers are there, the run is not finished: this is no score of it"
        for task, about in read_mark(path).items()
        if 0 < there[task] < about["answers"]
    }


def _line(answer: Answer) -> str:
    return spelled(answer) + "\n"


def _whole_lines(path: Path) -> list[Answer]:
    return [answer for answer in json_lines(path) if answer and _whole(answer)]


def _whole(answer: Answer | None) -> TypeGuard[Answer]:
    return answer is not None and answer.keys() >= NEEDED
