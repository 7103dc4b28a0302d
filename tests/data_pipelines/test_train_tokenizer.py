"""The tokenizer learns from everything that is trained on, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.train_tokenizer import lines, train_tokenizer
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError


def test_lines_are_those_of_every_stream_but_of_no_held_out_file(
    raw: Path, writers: dict[str, Callable[..., Any]]
) -> None:
    writers["json_lines"](raw / "text/secret_test.jsonl", [{"text": "never seen"}])
    found = list(lines(raw))
    for expected in ("caption 3.", "again 3.", "Document 5 begins.", "Plain text number 7.", "Its second line."):
        assert expected in found
    assert "User: What is it?" in found
    assert "never seen" not in found
    assert found.count("caption 0.") == 1
    assert not any("\n" in line or not line for line in found)


def test_the_same_text_makes_the_same_file(raw: Path, tmp_path: Path) -> None:
    first = train_tokenizer(raw, tmp_path / "a", 330)
    assert train_tokenizer(raw, tmp_path / "b", 330).fingerprint == first.fingerprint
    assert Tokenizer(tmp_path / "a/tokenizer.model").proto == first.proto
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tokenizer.model"]


def test_what_cannot_be_is_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder; expected a raw corpus"):
        train_tokenizer(tmp_path / "nowhere", tmp_path, 330)
    with pytest.raises(UserError, match="set vocabulary to"):
        train_tokenizer(raw, tmp_path, 32_000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(tmp_path / "empty", tmp_path, 330)
