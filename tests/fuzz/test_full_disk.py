"""A disk that fills up while shards are written: one sentence, what was finished stays, and a rerun goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.__main__ import main
from data_pipelines.describe import describe
from mm1.data.shards import ShardSet, read_manifest
from mm1.data.tokenizer import put, train
from tests.data_pipelines.web import json_lines, tar
from tests.fuzz.damage import picture, word

TEXTS = 400
PIPELINE = """
inputs:
  captions:
    - class_path: data_pipelines.sources.CaptionTars
      init_args: {{files: "{raw}/*.tar"}}
  text:
    - class_path: data_pipelines.sources.TextLines
      init_args: {{files: "{raw}/*.jsonl"}}
settings: {{row_tokens: 1024, tokens_per_image: 4, image_px: 8, part_rows: 50, val_share: 0}}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 500 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline of parts that need more than the small disk in all."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        pairs = {
            f"{n}.{kind}": data for n in range(8) for kind, data in (("png", picture(n)), ("txt", word(n).encode()))
        }
        (raw / f"{number}.tar").write_bytes(tar(pairs))
    (raw / "a.jsonl").write_bytes(json_lines({"text": f"{n} {word(n % 12)} " * 30} for n in range(TEXTS)))
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.format(raw=raw))
    return tmp_path / "pipeline.yaml"


def run(pipeline: Path, out: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-data", "run", str(pipeline), "--out", str(out), "--workers", str(workers)])
    main()


def with_tokenizer(out: Path) -> Path:
    put(out, train(["a few words and numbers 0123456789 Nxabcdef"] * 20, 290))
    return out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_sentence_and_a_rerun_goes_on(
    disk: Path,
    pipeline: Path,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = with_tokenizer(disk / "corpus")
    with pytest.raises(SystemExit) as stopped:
        run(pipeline, out, workers, monkeypatch)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1].split("\r")[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert "what was finished is kept" in last
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert finished
    assert workers > 1 or not list(out.rglob("*.tmp")), "others may be stopped in the middle"

    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    run(pipeline, out, workers, monkeypatch)
    kept = [path for path, written in finished.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(finished) - workers, "a part may have had its shard and not its note"
    run(pipeline, whole := with_tokenizer(tmp_path / "whole"), 1, monkeypatch)
    assert describe(read_manifest(out)) == describe(read_manifest(whole))
    for stream in ("captions", "text"):
        ShardSet(out, stream, "train").verify()
        ours, theirs = (sorted(corpus.glob(f"{stream}/*.tar")) for corpus in (out, whole))
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    assert len(ShardSet(out, "text", "train")) == TEXTS
    assert not list(out.rglob("*.tmp"))
    shutil.rmtree(out)
