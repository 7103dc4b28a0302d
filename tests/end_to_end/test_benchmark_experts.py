"""The benchmark of shared experts runs on any machine, in small."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SMALL = {"count": 4, "width": 16, "ffn_width": 24, "tokens": 32, "repeats": 1}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"dispatch": "overlapped"}, {"dispatch": "shadowed", "skew": 2}])
def test_two_ranks_are_timed_beside_one(tmp_path: Path, how: dict[str, Any]) -> None:
    options = [word for name, value in (SMALL | how).items() for word in (f"--{name}", str(value))]
    subprocess.run(
        [*START, "scripts/benchmark.py", "experts", *options, "--results", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    rows = list(csv.DictReader((tmp_path / "experts.csv").open()))
    assert [row["gpus"] for row in rows] == ["1", "2"]
    assert rows[1]["shape"] == rows[0]["shape"] + "".join(f", {way}" for way in [how.get("dispatch")] if way)
    one, two = (float(row["tokens_s"]) for row in rows)
    assert abs(float(rows[1]["ratio"]) - two / one) < 0.01
