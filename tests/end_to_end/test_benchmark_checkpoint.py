"""The benchmark of checkpoints runs on any machine, in small."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_ours_are_timed_beside_torch_save(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "scripts/benchmark.py",
            "checkpoint",
            "--size",
            "tiny",
            "--steps",
            "2",
            "--results",
            str(tmp_path),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    rows = list(csv.DictReader((tmp_path / "checkpoint.csv").open()))
    assert [row["contestant"] for row in rows] == ["ours, first", "ours, later", "torch.save"]
    sizes = [float(row["gb"]) for row in rows]
    assert max(sizes) < 1.02 * min(sizes)
    assert all(float(row["call_s"]) <= float(row["stopped_s"]) <= float(row["written_s"]) + 0.1 for row in rows[1:])
