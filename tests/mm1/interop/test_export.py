"""An exported folder is the same model, complete or not there."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import pad

import mm1
from mm1.data.tokenizer import find, from_hf
from mm1.errors import UserError
from mm1.interop.__main__ import main
from mm1.interop.export import export
from mm1.interop.origin import Origin
from mm1.model import stored
from mm1.model.build import build
from tests.mm1.data.hf_folders import KINDS, write
from tests.mm1.interop.exported import checkpoint, tokenizer


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
    files = ["README.md", "model.safetensors", "model.yaml", "tokenizer.model"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert not list(folder.parent.glob("*unfinished*"))
    assert torch.equal(logits(folder), logits(tiny_checkpoint))
    assert mm1.load(folder).tokenizer.proto == mm1.load(tiny_checkpoint).tokenizer.proto


def test_a_hugging_face_tokenizer_keeps_its_file_name(stored_tiny: dict[str, Any], tmp_path: Path) -> None:
    proto = from_hf(write("gpt2", tmp_path / "gpt2"))
    about = {**stored_tiny["mm1"], "tokenizer": proto}
    torch.save({**stored_tiny, "mm1": about}, tmp_path / "small.ckpt")
    with pytest.raises(UserError, match=r"tokenizer of 331 entries for a decoder of 310"):
        export(tmp_path / "small.ckpt", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    about["model"] = about["model"].replace("310", "340")  # rows of the embedding
    state = {
        name: pad(t, (0, 0, 0, 30)) if t.shape[:1] == (310,) else t for name, t in stored_tiny["state_dict"].items()
    }
    torch.save({**stored_tiny, "mm1": about, "state_dict": state}, tmp_path / "tiny.ckpt")
    folder = export(tmp_path / "tiny.ckpt", tmp_path / "model")
    assert find(folder).name == "tokenizer.json"
    assert stored.read(folder).tokenizer == proto


def test_an_existing_folder_is_not_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(tiny_checkpoint, tmp_path)


@pytest.mark.parametrize("to", ["own", "transformers"])
def test_a_full_disk_leaves_no_half_folder(tiny_checkpoint: Path, tmp_path: Path, to: Any) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"model\.mm1-unfinished cannot be written"):
            export(tiny_checkpoint, tmp_path / "model", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "model").exists()
    assert export(tiny_checkpoint, tmp_path / "model", to).is_dir()


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


def test_a_folder_is_exported_like_a_checkpoint_with_what_is_known_of_its_parts(
    stored_tiny: dict[str, Any], tmp_path: Path
) -> None:
    origin = Origin(vision={"class_path": "mm1.model.vision.Timm", "init_args": {"name": "vit_tiny"}}).to_json()
    torch.save({**stored_tiny, "mm1": {**stored_tiny["mm1"], "origin": origin}}, tmp_path / "a.ckpt")
    first = export(tmp_path / "a.ckpt", tmp_path / "first", to="transformers")
    second = export(first, tmp_path / "second", to="own")
    third = export(second, tmp_path / "third", to="transformers")
    torch.testing.assert_close(logits(second), logits(tmp_path / "a.ckpt"))
    assert (second / "origin.json").read_text() == origin
    for file in first.iterdir():
        told = file.read_text() if file.name == "README.md" else ""
        same = (third / file.name).read_bytes() == file.read_bytes()
        assert same or told.replace("# first", "# third") == (third / "README.md").read_text()


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("grown", [True, False])
@pytest.mark.parametrize("kind", ["sentencepiece", *KINDS])
def test_a_tokenizer_is_the_same_after_an_export_for_transformers(
    kind: str, grown: bool, padding: int, tmp_path: Path
) -> None:
    """Corpora know it by its fingerprint, so that its bytes matter."""
    own = tokenizer(kind, tmp_path / kind, grown)
    folder = export(checkpoint(tmp_path / "a.ckpt", own, padding=padding), tmp_path / "out", to="transformers")
    assert stored.read(folder).tokenizer == own.proto


def test_a_mixture_that_no_family_has_stays_ours(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = torch.load(tiny_checkpoint, weights_only=True)
    tree = yaml.safe_load(found["mm1"]["model"])
    soft = {"class_path": "mm1.model.moe.soft.SoftMixture", "init_args": {"experts": 2}}
    tree["init_args"]["decoder"]["init_args"] |= {"moe": soft, "moe_every": 1}
    model = build(tree).to_empty(device="cpu")
    model.init_weights(0)
    found["mm1"]["model"] = yaml.safe_dump(tree)
    found["state_dict"] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(found, tmp_path / "soft.ckpt")
    with pytest.raises(UserError, match="no family of open decoders computes what this one does"):
        export(tmp_path / "soft.ckpt", tmp_path / "theirs", to="decoder")
    assert export(tmp_path / "soft.ckpt", tmp_path / "ours").is_dir()


def test_without_transformers_its_export_is_refused_and_ours_is_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['transformers'] = None; from mm1.interop.export import export; "
        f"print(export({str(tiny_checkpoint)!r}, {str(tmp_path / 'own')!r})); "
        f"export({str(tiny_checkpoint)!r}, {str(tmp_path / 'theirs')!r}, to='transformers')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(mm1.__file__).parents[1], capture_output=True, text=True
    )
    assert str(tmp_path / "own") in done.stdout
    assert "pip install 'mm1[transformers]'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "theirs").exists()


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
