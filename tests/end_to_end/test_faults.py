"""A rank that hangs is named, memory that runs out names its knobs, a full disk leaves the last checkpoint whole."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.errors import UserError, door
from mm1.runs import Run
from mm1.train.watchdog import HANGS, held_up_by
from tests.conftest import fit, run_config
from tests.end_to_end.test_resume import checkpoint_of
from tests.mm1.train.test_strategy import fit_on


class Hang(Callback):
    """A rank stops for good before its fifth step: by waiting, or as the machine below it stands still."""

    def __init__(self, rank: int, frozen: bool) -> None:
        self.rank, self.frozen = rank, frozen

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == self.rank:
            Path(trainer.default_root_dir, "hung").write_text(str(os.getpid()))
            if self.frozen:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(100)


def hanging(corpus: Path, rank: int, frozen: bool) -> dict[str, Any]:
    hang = {"class_path": f"{__name__}.Hang", "init_args": {"rank": rank, "frozen": frozen}}
    return run_config(corpus, callbacks=[hang]) | {"hang_timeout_s": 4}


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named(corpus: Path, tmp_path: Path, frozen: bool, capfd) -> None:
    process = multiprocessing.get_context("fork").Process(target=fit_on, args=(2, tmp_path, hanging(corpus, 1, frozen)))
    process.start()
    deadline_s, told = time.monotonic() + 60, ""
    while "error: training" not in told and time.monotonic() < deadline_s:
        time.sleep(0.2)
        told += capfd.readouterr().err
    hung = int((tmp_path / "hung").read_text())
    if frozen:
        os.kill(hung, signal.SIGKILL)
    process.join()
    assert f"it waits for rank 1 ({os.uname().nodename}, process {hung}), last heard of at step" in told
    assert "waits for rank 0" not in told
    if not frozen:
        assert "at step 5, in the forward pass" in told
        assert "time.sleep(100)" in (tmp_path / "heartbeats" / "rank-1.stack").read_text()


def sign(number: int, waits: bool = False, at_s: float = 100) -> dict[str, Any]:
    return {"sign": number, "waits": waits, "at_s": at_s}


@pytest.mark.parametrize(
    ("signs", "named"),
    [
        ([sign(7), None, sign(7)], {1}),
        ([sign(7), sign(8), sign(9, at_s=10)], {2}),
        ([sign(7), sign(8), sign(6)], {2}),
        ([sign(7, waits=True), sign(7, waits=True), sign(7)], {2}),
        ([sign(7, waits=True), sign(7, waits=True), sign(8)], {0, 1}),
    ],
)
def test_whom_the_others_wait_for(signs: list[dict[str, Any] | None], named: set[int]) -> None:
    assert held_up_by(dict(enumerate(signs)), silent_s=30).keys() == named


def test_one_rank_alone_is_watched_too(corpus: Path, tmp_path: Path, capfd) -> None:
    config = hanging(corpus, 0, False) | {"hang_timeout_s": 2}
    process = multiprocessing.get_context("fork").Process(target=door, args=(lambda: fit(tmp_path, config),))
    process.start()
    process.join(60)
    assert process.exitcode == HANGS
    assert "waits for rank 0" in capfd.readouterr().err
    assert torch.load(Run(tmp_path).last, weights_only=True)["global_step"] == 3


class Starve(Callback):
    """After its third step the process may take no more than a little memory, and then needs a lot."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))

    def on_before_backward(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            torch.zeros(2**28)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_out_of_memory_names_the_knobs(corpus: Path, tmp_path: Path, capfd) -> None:
    config = run_config(corpus, callbacks=[{"class_path": f"{__name__}.Starve"}], accumulate_grad_batches=2)
    process = multiprocessing.get_context("fork").Process(target=door, args=(lambda: fit(tmp_path, config),))
    process.start()
    process.join(60)
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert process.exitcode == 2
    assert told.startswith("error: out of memory for 1073741824 bytes more at step 4, with 2 rows a micro-batch, 96 ")
    assert "raise trainer.accumulate_grad_batches, then set checkpointing" in told
    assert "to selective, then to true" in told
    assert "checkpointing false (vision false)" in told


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Fill(Callback):
    """Fill the disk before the checkpoint of step 6, up to a few pages."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        folder = Run(trainer.default_root_dir).last.parent.resolve().parent
        if trainer.global_step == 5 and trainer.global_rank == 0:
            free = os.statvfs(folder)
            (folder / "filled").write_bytes(bytes(free.f_bavail * free.f_bsize - 2**16))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_leaves_the_last_checkpoint_whole(corpus: Path, tmp_path: Path, disk: Path, ranks: int) -> None:
    config, folder = run_config(corpus, callbacks=[{"class_path": f"{__name__}.Fill"}]), disk / "run"
    with pytest.raises(
        Exception, match=r"last\.ckpt cannot be written after step 6 \(No space left on device\)"
    ) as error:
        fit_on(ranks, folder, config)
    assert ranks > 1 or isinstance(error.value, UserError)
    assert torch.load(Run(folder).last, weights_only=True)["global_step"] == 3
    assert [path.name for path in Run(folder).last.parent.iterdir()] == ["last.ckpt"]
    (folder / "filled").unlink()
    del config["trainer"]["callbacks"]
    fit_on(ranks, folder, config)
    assert Run(folder).about()["finished"]


class Lock(Callback):
    """From step 5 on nothing may be written where checkpoints go."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == 0:
            folder = Run(trainer.default_root_dir).last.parent.resolve().parent
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


@pytest.mark.parametrize(
    ("ranks", "fault", "why"),
    [
        (1, Fill, "No space left on device"),
        (2, Fill, "No space left on device"),
        pytest.param(1, Lock, "Read-only file system", marks=pytest.mark.slow),
        (2, Lock, "Read-only file system"),
    ],
)
def test_what_cannot_be_written_meanwhile_stops_all_ranks_alike(
    corpus: Path, tmp_path: Path, disk: Path, ranks: int, fault: type[Callback], why: str, capfd
) -> None:
    """Only checkpoints are on the disk that fails; training goes on until the thread that writes has told."""
    config = run_config(corpus, callbacks=[{"class_path": f"{__name__}.{fault.__name__}"}], max_steps=30)
    config |= {"checkpoints": "sharded", "save_every_n_steps": 3, "validate_every_n_steps": 100}
    run = Run(tmp_path / "run")
    (disk / "checkpoints").mkdir()
    run.folder.mkdir()
    run.last.parent.symlink_to(disk / "checkpoints")
    with pytest.raises(Exception, match=rf"last\.ckpt cannot be written after step 6 \({why}\)") as error:
        fit_on(ranks, run.folder, config)
    assert ranks > 1 or isinstance(error.value, UserError)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert checkpoint_of(run.last)["global_step"] == 3
    assert sorted(path.name for path in run.last.parent.iterdir()) == ["last.ckpt", "step-00000003.ckpt"]
    assert run.history("train")[-1]["step"] < 9, "it was told before the next checkpoint"
    (disk / "filled").unlink(missing_ok=True)
    del config["trainer"]["callbacks"]
    config["trainer"]["max_steps"] = 9
    fit_on(ranks, run.folder, config)
    assert run.about()["finished"]


def test_a_folder_that_cannot_be_written_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    """Its place is taken by a folder, which not even root may write a file over."""
    run = Run(tmp_path)
    (run.last.parent / "last.ckpt.tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be written after step 3 \(Is a directory\)"):
        fit(tmp_path, run_config(corpus))
