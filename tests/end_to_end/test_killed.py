"""Killed again and again, at any moment and while a checkpoint is being written, or asked to leave: nothing is lost.

Runs are forked from one process that has the imports done, one or two ranks, which are killed together.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.errors import door
from mm1.model.stored import read
from mm1.runs import Run
from mm1.train.preemption import REQUEUE
from tests.conftest import fit, run_config
from tests.end_to_end.test_resume import assert_same, checkpoint_of, killed
from tests.mm1.train.test_strategy import fit_on

STEPS = 30


class NoteDocuments(Callback):
    """Write down what every step is trained on, once it has been."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        with (Path(trainer.default_root_dir) / f"documents-{trainer.global_rank}.jsonl").open("a") as lines:
            lines.write(json.dumps([trainer.global_step, batch.documents]) + "\n")


def noted(run: Run, rank: int = 0) -> list[tuple[int, list[str]]]:
    return [json.loads(line) for line in (run.folder / f"documents-{rank}.jsonl").read_text().splitlines()]


def config_of(corpus: Path, workers: int = 0, steps: int = STEPS) -> dict[str, Any]:
    config = run_config(corpus, 4, max_steps=steps, log_every_n_steps=1)
    config["trainer"]["callbacks"] = [{"class_path": f"{__name__}.NoteDocuments"}]
    config["data"]["workers"] = workers
    return config | {"save_every_n_steps": 1}


def start(folder: Path, config: dict[str, Any], ranks: int = 1) -> Any:
    """A run in a process group of its own, which is killed as a machine is: all ranks at once."""

    def train() -> None:
        os.setpgid(0, 0)
        door(lambda: fit_on(ranks, folder, config))

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    return process


def torn(run: Run) -> list[Path]:
    """What has the name of something that is still being written."""
    return [*run.last.parent.glob("*.tmp")]


def kill(process: Any, run: Run, chance: random.Random, writing: bool, most_s: float = 60) -> bool:
    """Kill it after a step or two and a random part of another, or while a checkpoint is being written."""
    steps = len(run.history("train")) + 1
    deadline_s = time.monotonic() + most_s
    while process.is_alive() and len(run.history("train")) < steps:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    caught = False
    if not writing:
        time.sleep(chance.uniform(0, 0.15))
    while writing and process.is_alive() and not caught:
        if torn(run):
            time.sleep(chance.uniform(0, 0.01))
            os.killpg(process.pid, signal.SIGSTOP)  # so that it is known to write still, or else goes on to the next
            time.sleep(0.01)
            if not (caught := bool(torn(run))):
                os.killpg(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return caught and bool(torn(run))


@pytest.mark.parametrize(
    ("layout", "ranks", "kills"),
    [
        ("whole", 1, 5),
        ("sharded", 1, 5),
        ("sharded", 2, 2),
        *(pytest.param(*each, 20, marks=pytest.mark.slow) for each in (("whole", 1), ("sharded", 1), ("sharded", 2))),
    ],
)
def test_killed_at_random_moments(corpus: Path, tmp_path: Path, layout: str, ranks: int, kills: int) -> None:
    steps = 6 * kills
    config = config_of(corpus, steps=steps) | {"checkpoints": layout}
    if ranks > 1:
        config["trainer"]["strategy"] = {"class_path": "mm1.train.strategy.Sharded", "init_args": {"experts": 2}}
    fit_on(ranks, tmp_path / "whole", config)
    whole = Run(tmp_path / "whole")
    run, chance, while_writing = Run(tmp_path / "killed"), random.Random(kills), 0
    for number in range(kills):
        process = start(run.folder, config | {"save_every_n_steps": 1 if number % 2 else 2}, ranks)
        while_writing += kill(process, run, chance, writing=bool(number % 2))
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        if os.path.lexists(run.last):
            read(run.last)
    assert while_writing, "none was killed while it wrote"
    fit_on(ranks, run.folder, config)
    assert_same(run, whole)
    assert not torn(run)
    for rank in range(ranks):
        expected = dict(noted(whole, rank))
        assert len(expected) == steps
        assert all(documents == expected[step] for step, documents in noted(run, rank))
        assert {step for step, _ in noted(run, rank)} == expected.keys()


@pytest.mark.parametrize(
    ("number", "workers", "layout"), [(signal.SIGTERM, 0, "sharded"), (signal.SIGUSR1, 1, "whole")]
)
def test_asked_to_leave_it_saves_and_says_so(
    corpus: Path, tmp_path: Path, number: signal.Signals, workers: int, layout: str
) -> None:
    config = config_of(corpus, workers) | {"save_every_n_steps": 1000, "checkpoints": layout}
    run = killed(tmp_path / "left", config, at_step=5, by=number, code=REQUEUE)
    assert 5 <= checkpoint_of(run.last)["global_step"] < STEPS
    assert not run.about()["finished"]
    assert_same(fit(run.folder, config), fit(tmp_path / "whole", config))
    assert [step for step, _ in noted(run)] == [*range(1, STEPS + 1)], "no step was trained twice"


def test_a_job_of_slurm_is_requeued(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no SLURM here: its variables are set, and ``scontrol`` writes down how it was called."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    slurm = {"NTASKS": "1", "JOB_ID": "41", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = config_of(corpus)
    run = killed(tmp_path / "run", config, at_step=5, by=signal.SIGUSR1, code=REQUEUE)
    assert (tmp_path / "called").read_text() == "requeue 40_3\n"
    assert run.last.exists()
    assert not list(run.folder.glob("hpc_ckpt*"))
    run = killed(tmp_path / "run", config, at_step=10, by=signal.SIGTERM, code=REQUEUE)
    assert (tmp_path / "called").read_text() == "requeue 40_3\n", "after a SIGTERM it is for SLURM to decide"


class AskRankOne(Callback):
    """The second rank is asked to leave after its fourth step."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_all_ranks_leave_together_when_one_is_asked(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, callbacks=[{"class_path": f"{__name__}.AskRankOne"}]) | {"save_every_n_steps": 1000}
    with pytest.raises(Exception, match=f"exit code {REQUEUE}"):
        fit_on(2, tmp_path, config)
    assert torch.load(Run(tmp_path).last, weights_only=True)["global_step"] == 4
