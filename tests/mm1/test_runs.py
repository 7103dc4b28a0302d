"""Files of a run folder that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm1.errors import UserError
from mm1.runs import Run, read_json, read_object


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist; expected numbers"),
        (b"{", r"is not readable as JSON \(Expecting .*\); expected numbers"),
        (b"\xff\xfe", "is not readable as JSON .*; expected numbers"),
        (b"[" * 100_000, "is not readable as JSON .*; expected numbers"),
        (b"[]", "holds a list, no object; expected numbers"),
    ],
)
def test_what_is_no_object_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "numbers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"numbers\.json {told}"):
        read_object(path, "numbers")


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not readable as JSON .*directory"):
        read_json(tmp_path, "numbers")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/run\.json does not exist; expected a run folder"):
        Run(tmp_path / "file").about()


def test_metric_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log("train", 1, loss=2.0)
    with run.metrics.open("ab") as lines:
        lines.write(b'[1]\n3\n{}\n\xff\n{"split": "train", "st')
    assert run.history() == [{"split": "train", "step": 1, "loss": 2.0}]
    run.truncate(1)
    run.log("val", 2, loss=1.0)
    assert [line["step"] for line in run.history()] == [1, 2]
