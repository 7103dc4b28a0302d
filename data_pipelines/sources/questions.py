"""Answered questions about pictures, for pre-training: the train part of ``vqa/<name>/``, in both formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import WHOLE, Draft, Place, Rejection, Source, Span, WrongFields, json_lines
from mm1.errors import UserError
from mm1.runs import read_object
from mm1.sample import Text
from mm1.template import short_answer


class Questions(Source):
    """``Question: q Short answer: a``, a line each, after their picture; only answers are learned.

    A document holds up to ``QUESTIONS`` of the questions about one picture: encoding a picture costs far more than a
    line, and one question a document would spend nine positions of ten on pictures.
    """

    stream = "vqa"
    pattern = "vqa/*/train*.json*"
    opt_in = True
    QUESTIONS = 4

    @classmethod
    def takes(cls, path: Path) -> bool:
        """Files of questions; annotations are read with them."""
        return path.name in ("train.jsonl", "train_questions.json")

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        asked: dict[Place, list[tuple[Text, Text]]] = {}
        place = f"{path.parent.name}/{path.stem}"
        for found in self.answered(path):
            if isinstance(found, Rejection):
                yield found
            else:
                picture, question, answer = found
                asked.setdefault(picture, []).append(short_answer(question, answer))
        for picture, lines in asked.items():
            group = self.group(picture)
            for start in range(0, len(lines), self.QUESTIONS):
                items = [item for line in lines[start : start + self.QUESTIONS] for item in line]
                yield Draft(f"{place}:{Path(picture.name).stem}#{start}", self.stream, (picture, *items), group)

    def answered(self, path: Path) -> Iterator[tuple[Place, str, str] | Rejection]:
        """Picture, question and answer of every usable row."""
        rows = _lines(path) if path.suffix == ".jsonl" else _v2(path)
        for place, row in rows:
            match row:
                case {"image": name, "question": str(question), "answer": str(answer)}:
                    try:
                        picture = self.picture(path, name)
                    except WrongFields:
                        yield Rejection(place, "wrong fields")
                        continue
                    if question.strip() and answer.strip():
                        yield picture, question.strip(), answer.replace("_", " ").strip()
                    else:
                        yield Rejection(place, "empty question or answer")
                case _:
                    yield Rejection(place, "wrong fields")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path.parent.name}/{place}", row) for place, row in json_lines(path))


def _v2(path: Path) -> Iterator[tuple[str, Any]]:
    """VQA v2's two files as rows; the answer is the one most people gave."""
    place = f"{path.parent.name}/{path.stem}"
    try:
        questions = read_object(path, "questions in the format of VQA v2")
        annotations = read_object(path.with_name("train_annotations.json"), "annotations in the format of VQA v2")
        answers = {
            row["question_id"]: Counter(answer["answer"] for answer in row["answers"]).most_common(1)[0][0]
            for row in annotations["annotations"]
        }
        subtype = questions["data_subtype"]
        for row in questions["questions"]:
            name = f"images/COCO_{subtype}_{row['image_id']:012d}.jpg"
            answer = answers.get(row["question_id"])
            yield f"{place}:{row['question_id']}", {"image": name, "question": row["question"], "answer": answer}
    except (UserError, KeyError, TypeError, ValueError, IndexError):
        yield place, None
