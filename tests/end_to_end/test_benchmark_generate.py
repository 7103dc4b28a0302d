"""The benchmark of the engine beside transformers' generate runs on any machine, in small, and both say the same."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_ours_says_what_transformers_says_on_the_same_weights(tmp_path: Path) -> None:
    options = ["--size", "tiny", "--prompts", "8", "--batches", "[1, 4]", "--batch_positions", "600"]
    options += ["--compiled", "false", "--exact_prompts", "3", "--results", str(tmp_path)]
    told = subprocess.run(
        [sys.executable, "scripts/benchmark.py", "generate", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    ).stdout
    rows = list(csv.DictReader((tmp_path / "generate.csv").open()))
    assert [row["batch"] for row in rows] == ["0", "0", "1", "4"]
    assert [row["equal"] for row in rows] == ["", "", "1.0", "1.0"]
    assert "of 3 answers 3 are equal one at a time and together, 3 equal transformers'" in told
