"""The benchmark of a trained model's answers: our engine and transformers' generate, asked the same, say the same."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def told(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/benchmark.py", "answers", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_both_caption_alike_in_fp32(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    options = ["--shots", "2", "--batches", "[1, 4]", "--dtype", "float32", "--results", str(tmp_path)]
    said = told(str(checkpoint), str(data), *options)
    assert said.returncode == 0, said.stderr
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    assert {row["batch"] for row in rows} == {"0", "1", "4"}
    assert {row["equal"] for row in rows} == {"1.0"}
    for task in {row["task"] for row in rows}:
        assert len({row["cider"] for row in rows if row["task"] == task}) == 1


@pytest.mark.slow
def test_a_folder_without_captions_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    said = told(str(checkpoint), str(data), "--tasks", '["vqa/daquar"]', "--results", str(tmp_path))
    assert said.returncode == 2
    assert "has no benchmark of captions" in said.stderr
    assert "Traceback" not in said.stderr
