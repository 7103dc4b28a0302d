"""Killed on a GPU: bit for bit the same run where it is asked to be, no further from it than chance where it is not.

    python -m pytest -m gpu tests/end_to_end/test_killed_gpu.py

Runs are forked from one process that has the imports done and has never touched the GPU, which a fork cannot share.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mm1.errors import door
from mm1.runs import Run
from tests.conftest import fit
from tests.end_to_end.test_killed import config_of, kill, noted, torn
from tests.end_to_end.test_resume import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs a CUDA device"),  # asked without touching it
]
LOADED = ["mm1.train.__main__", "mm1.model.vision", "mm1.model.connector", "mm1.model.moe.layer", "tests.conftest"]
KILLS, STEPS = 5, 30
FIRST_S = 150  # the first step of a process may have to compile


def start(folder: Path, config: dict[str, Any]) -> Any:
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # so that looking whether there is a GPU touches none
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=train, args=(folder, config))
    process.start()
    return process


def train(folder: Path, config: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    door(lambda: fit(folder, config))


def finished(folder: Path, config: dict[str, Any]) -> Run:
    process = start(folder, config)
    process.join()
    assert process.exitcode == 0
    return Run(folder)


def on_gpu(corpus: Path, deterministic: bool) -> dict[str, Any]:
    config = config_of(corpus, steps=STEPS) | {"checkpoints": "sharded"}
    config["trainer"] |= {"accelerator": "gpu", "precision": "bf16-mixed", "deterministic": deterministic}
    return config


def killed(folder: Path, config: dict[str, Any], kills: int) -> Run:
    run, chance, while_writing = Run(folder), random.Random(kills), 0
    for number in range(kills):
        process = start(folder, config | {"save_every_n_steps": 1 if number % 2 else 2})
        while_writing += kill(process, run, chance, writing=bool(number % 2), most_s=FIRST_S)
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    assert while_writing or kills < 2, "none was killed while it wrote"
    finished(folder, config)
    assert not torn(run)
    return run


@pytest.mark.parametrize("kills", [KILLS, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_is_the_same_run(corpus: Path, tmp_path: Path, kills: int) -> None:
    config = on_gpu(corpus, deterministic=True)
    config["trainer"]["max_steps"] = 6 * kills
    whole = finished(tmp_path / "whole", config)
    run = killed(tmp_path / "killed", config, kills)
    assert_same(run, whole)
    expected = dict(noted(whole))
    assert all(documents == expected[step] for step, documents in noted(run))
    assert {step for step, _ in noted(run)} == expected.keys()


def test_where_chance_is_left_a_resumed_run_is_no_further_away(corpus: Path, tmp_path: Path) -> None:
    """Three undisturbed runs say how far apart runs are; three times that allows for there being only three."""
    config = on_gpu(corpus, deterministic=False)
    undisturbed = [losses(finished(tmp_path / str(number), config)) for number in range(3)]
    usual = max(apart(*pair) for pair in combinations(undisturbed, 2))
    resumed = losses(killed(tmp_path / "killed", config, 1))
    found = min(apart(resumed, other) for other in undisturbed)
    assert found <= 3 * usual, f"{found} nats apart, undisturbed runs are {usual}"


def losses(run: Run) -> list[float]:
    found = {line["step"]: line["loss"] for line in run.history("train")}
    assert list(found) == [*range(1, STEPS + 1)]
    return list(found.values())


def apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
