"""The benchmark of a real mix: rows are what it says they are, and it runs on any machine in small."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm1.batch import IMAGE

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_packed_by_the_mix_and_padded_ones_fit_as_many_positions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks import mix
    from benchmarks.train import SIZES

    size = SIZES["tiny"]
    packed, padded = mix.packed_batches(size, 4), mix.padded_batches(size, 4)
    assert all(batch.tokens_BT.shape == (4, size.row_tokens) for batch in packed)
    assert sum(batch.tokens for batch in packed) > 0.95 * sum(batch.tokens_BT.numel() for batch in packed)
    assert all(batch.tokens_BT.numel() <= 4 * size.row_tokens for batch in padded)
    assert all(int(batch.segments_BT.max()) == 1 for batch in padded)
    for batch in (*packed, *padded):
        assert int((batch.tokens_BT == IMAGE).sum()) == len(batch.images_ICHW) * size.side**2
        assert torch.equal(batch.segments_BT > 0, batch.tokens_BT != 0)


@pytest.mark.slow
def test_ours_is_timed_beside_the_peer_in_both_ways(tmp_path: Path) -> None:
    names = '["peer, a document a row", "peer, our rows", "ours"]'
    flags = ["--size", "tiny", "--contestants", names, "--repeats", "1", "--results", str(tmp_path)]
    subprocess.run(
        [sys.executable, "scripts/benchmark.py", "mix", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    rows = list(csv.DictReader((tmp_path / "mix.csv").open()))
    assert [row["contestant"] for row in rows] == ["peer, a document a row", "peer, our rows", "ours"]
    assert float(rows[0]["fill"]) < float(rows[1]["fill"]) == float(rows[2]["fill"])
