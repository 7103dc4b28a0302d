"""An exported folder is the same model, complete or not there."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mm1
from mm1.data.tokenizer import find, from_hf
from mm1.errors import UserError
from mm1.interop.__main__ import main
from mm1.interop.export import export
from mm1.model import stored
from tests.mm1.data.hf_folders import write


def logits(path: Path) -> torch.Tensor:
    model = mm1.load(path).model
    tokens_BT = torch.tensor([[-1] * model.connector.tokens + [1, 5, 9, 20]])
    pictures = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(1, 3, 64, 64)
    with torch.inference_mode():
        x_BTD = model.embed(tokens_BT, model.encode_images(pictures))
        segments_BT, positions_BT = torch.ones_like(tokens_BT), torch.arange(tokens_BT.shape[1])[None]
        return model.decoder.logits(model.decoder(x_BTD, segments_BT, positions_BT).hidden_BTD)


def test_the_exported_model_computes_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = export(tiny_checkpoint, tmp_path / "deep" / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "model.yaml", "tokenizer.model"]
    assert not list(folder.parent.glob("*.tmp"))
    assert torch.equal(logits(folder), logits(tiny_checkpoint))
    assert mm1.load(folder).tokenizer.proto == mm1.load(tiny_checkpoint).tokenizer.proto


def test_a_hugging_face_tokenizer_keeps_its_file_name(stored_tiny: dict[str, Any], tmp_path: Path) -> None:
    proto = from_hf(write("gpt2", tmp_path / "gpt2"))
    torch.save({**stored_tiny, "mm1": {**stored_tiny["mm1"], "tokenizer": proto}}, tmp_path / "tiny.ckpt")
    folder = export(tmp_path / "tiny.ckpt", tmp_path / "model")
    assert find(folder).name == "tokenizer.json"
    assert stored.read(folder).tokenizer == proto


def test_an_existing_folder_is_not_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(tiny_checkpoint, tmp_path)


def test_a_full_disk_leaves_no_half_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"model\.tmp cannot be written"):
            export(tiny_checkpoint, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "model").exists()
    assert export(tiny_checkpoint, tmp_path / "model").is_dir()


def test_a_folder_that_lacks_a_file_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = export(tiny_checkpoint, tmp_path / "model")
    (folder / "model.yaml").unlink()
    with pytest.raises(UserError, match=r"holds no model\.yaml"):
        mm1.load(folder)


def test_weights_of_another_format_are_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = export(tiny_checkpoint, tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"format":"1"', b'"format":"7"', 1))
    with pytest.raises(UserError, match="checkpoint format 7"):
        mm1.load(folder)


def test_the_door_exports(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-convert", "export", str(tiny_checkpoint), str(tmp_path / "model")])
    main()
    assert str(tmp_path / "model") in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "exists already" in capsys.readouterr().err
