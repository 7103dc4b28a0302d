"""Several ranks are started by one command, or by torchrun, and train what one process does (docs/scale.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mm1
from mm1.runs import Run
from tests.conftest import fit
from tests.mm1.train.test_strategy import assert_alike, one, sharded, weights_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["one command", "torchrun"])
def test_two_ranks_are_started(corpus: Path, tmp_path: Path, start: str) -> None:
    config = one(corpus, 4)
    fit(tmp_path / "one", config)
    config = sharded(corpus, 4, tensor=2)
    del config["trainer"]["devices"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    words = ["mm1.train", "fit", "--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "two")]
    words += ["--trainer.devices", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    environment = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(torchrun if start == "torchrun" else ["-m"]), *words]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found, expected = (weights_of(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("two", "one"))
    assert_alike(found, expected)
    about = Run(tmp_path / "two").about()
    assert about["ranks"] == 2
    assert about["finished"]
    losses = [[line["loss"] for line in Run(tmp_path / run).history("train")] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert mm1.load(tmp_path / "two" / "checkpoints" / "last.ckpt").model is not None
