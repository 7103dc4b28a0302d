"""The door as people use it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.__main__ import main, shards, spelled
from data_pipelines.pipeline import Settings
from mm1.batch import IMAGE, ImageSpec
from mm1.data.shards import read_manifest
from mm1.data.streams import Recipe, Windows
from mm1.data.tokenizer import Tokenizer
from tests.mm1.data.hf_folders import write

Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]


def call(monkeypatch: Patch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-data", *map(str, words)])
    main()


def test_tokenizer_shards_describe(raw: Path, tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    corpus = tmp_path / "new" / "corpus"
    call(monkeypatch, "tokenizer", "--data", raw, "--out", corpus, "--vocabulary", "330")
    assert Tokenizer(corpus / "tokenizer.model").vocabulary == 330
    small = ("--row-tokens", "64", "--tokens-per-image=4", "--image_px", "16", "--workers", "1")
    call(monkeypatch, "shards", "--data", raw, "--out", corpus, *small, "--strict")
    manifest = read_manifest(corpus)
    assert (manifest["row_tokens"], manifest["tokens_per_image"], manifest["image_px"]) == (64, 4, 16)
    capsys.readouterr()
    call(monkeypatch, "describe", corpus)
    assert "interleaved  train" in capsys.readouterr().out


def test_a_taken_tokenizer_s_shards_are_read_by_training(raw: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    corpus = tmp_path / "corpus"
    call(monkeypatch, "tokenizer", "--take", write("gpt2", tmp_path / "gpt2"), "--out", corpus)
    small = ("--row-tokens", "64", "--tokens-per-image=4", "--image_px", "16", "--workers", "2")
    call(monkeypatch, "shards", "--data", raw, "--out", corpus, *small, "--strict")
    spec = ImageSpec(size_px=16, tokens=4)
    recipe = Recipe(corpus=corpus, image_spec=spec, row_tokens=64, rows_per_step=4, images_per_row=16)
    tokenizer = Tokenizer(corpus / "tokenizer.json")
    assert read_manifest(corpus)["tokenizer"] == tokenizer.fingerprint
    (batch,) = next(iter(Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)))
    text = tokenizer.decode(batch.tokens_BT[batch.tokens_BT != IMAGE].tolist())
    assert "caption" in text
    assert "Document" in text


@pytest.mark.parametrize("words", [(), ("--take", "x", "--data", "y")])
def test_a_tokenizer_is_trained_or_taken(monkeypatch: Patch, capsys: Captured, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "tokenizer", "--out", "nowhere", *words)
    assert "expected one of both, to train or to take from" in capsys.readouterr().err


def test_scenes_run_through(tmp_path: Path, monkeypatch: Patch) -> None:
    raw, corpus = tmp_path / "scenes", tmp_path / "corpus"
    call(monkeypatch, "scenes", raw, "--worlds", "60", "--test-worlds", "4", "--image-px", "32")
    call(monkeypatch, "tokenizer", "--data", raw, "--out", corpus, "--vocabulary", "400")
    call(monkeypatch, "shards", "--data", raw, "--out", corpus, "--image-px", "32", "--workers", "1", "--strict")
    streams = read_manifest(corpus)["streams"]
    assert set(streams) == {"captions", "interleaved", "text", "sft"}
    assert all(written["dropped"] == {} for written in streams.values())


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "describe", tmp_path)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/manifest.json does not exist; expected a corpus written by mm1-data shards\n"
    )


def test_the_flags_are_the_settings() -> None:
    flags = {name: parameter.default for name, parameter in inspect.signature(shards).parameters.items()}
    settings = {name: parameter.default for name, parameter in inspect.signature(Settings).parameters.items()}
    assert flags["hints"] is None  # which stands for none: a mapping is no default
    assert {name: flags[name] for name in settings} == settings | {"hints": None}
    assert set(flags) - set(settings) == {"data", "out", "strict", "workers"}


def test_flags_may_be_spelled_with_hyphens_and_switches_bare() -> None:
    words = ["shards", "--row-tokens", "5", "--image-px=3", "my-folder", "--strict", "--keep-pictures", "false"]
    assert spelled(words) == [
        "shards", "--row_tokens", "5", "--image_px=3", "my-folder", "--strict=true", "--keep_pictures", "false",
    ]  # fmt: skip
    assert spelled(["--data=a-b--c"]) == ["--data=a-b--c"]


def test_help_is_quick_because_heavy_imports_wait() -> None:
    code = "import sys, data_pipelines.__main__; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
