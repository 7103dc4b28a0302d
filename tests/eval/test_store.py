"""Answers to another question are set aside and taken up again, not thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.store import Answers
from mm1.runs import write_json


def answer(id: str) -> dict[str, Any]:
    about = {"task": "vqa/x", "shots": 0, "arm": "sighted", "id": id, "image": "a.jpg"}
    return {**about, "answer": "two", "references": ["two"], "score": 100.0}


def begun(folder: Path, asked: str) -> Answers:
    answers = Answers(folder, asked)
    answers.begin()
    return answers


def test_another_question_sets_answers_aside_and_the_first_finds_them_again(tmp_path):
    begun(tmp_path, "first").add([answer("1"), answer("2")])
    other = begun(tmp_path, "other")
    assert not other.found
    other.add([answer("3")])
    assert (tmp_path / "answers-first.jsonl").exists()
    again = begun(tmp_path, "first")
    assert [found["id"] for found in again.found.values()] == ["1", "2"]
    assert not (tmp_path / "answers-first.jsonl").exists()
    again.add([answer("4")])
    assert [found["id"] for found in begun(tmp_path, "other").found.values()] == ["3"]
    assert len(begun(tmp_path, "first").found) == 3


def test_half_a_surrogate_pair_is_kept_as_it_was_escaped(tmp_path):
    """A file may escape one; UTF-8 cannot hold it."""
    answers = begun(tmp_path, "first")
    answers.add([{**answer("1"), "references": ["\ud83d", "é"]}, answer("2")])
    write_json(tmp_path / "scores.json", {"seen": "\ud83d"})
    assert begun(tmp_path, "first").found == answers.found
    assert "é" not in (tmp_path / "answers.jsonl").read_text()


def test_what_is_refused_before_it_begins_moves_nothing(tmp_path):
    begun(tmp_path, "first").add([answer("1")])
    Answers(tmp_path, "other")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "answers-first.jsonl").exists()
