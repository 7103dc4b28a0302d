"""A trained tokenizer learns from everything that is trained on and nothing else; a taken one stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.train_tokenizer import lines, take_tokenizer, train_tokenizer
from mm1.data.tokenizer import Tokenizer, find, from_hf, grow, put, train
from mm1.errors import UserError
from tests.mm1.data.hf_folders import write


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


def test_a_model_folder_s_tokenizer_is_taken_by_the_bytes(tmp_path: Path) -> None:
    ours = {"json": grow(from_hf(write("qwen", tmp_path / "qwen"))), "model": train(["The red circle."], 290)}
    for kind, proto in ours.items():
        put(tmp_path / kind, proto)
        out = tmp_path / f"from {kind}"
        for source in (tmp_path / kind, find(tmp_path / kind)):
            assert take_tokenizer(source, out).proto == proto
        assert [path.name for path in out.iterdir()] == [f"tokenizer.{kind}"]


def test_a_hugging_face_folder_s_tokenizer_is_taken_even_with_a_sentencepiece_file_beside_it(tmp_path: Path) -> None:
    proto = from_hf(write("llama2", tmp_path / "llama"))
    (tmp_path / "llama/tokenizer.model").write_bytes(b"not looked at")
    assert take_tokenizer(tmp_path / "llama", tmp_path / "out").proto == proto


def test_a_checkpoint_s_tokenizer_is_taken(tmp_path: Path) -> None:
    proto = train(["The red circle."], 290)
    about = {"format": 1, "model": "{}", "tokenizer": proto}
    torch.save({"mm1": about, "state_dict": {}}, tmp_path / "last.ckpt")
    assert take_tokenizer(tmp_path / "last.ckpt", tmp_path / "out").proto == proto


def test_a_source_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not readable"):
        take_tokenizer(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no tokenizer\.model or tokenizer\.json"):
        take_tokenizer(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
