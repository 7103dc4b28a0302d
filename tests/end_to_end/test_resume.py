"""Killed without warning and started again, a run ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mm1.batch import Batch
from mm1.errors import UserError, door
from mm1.interop.export import export
from mm1.model.pieces import Pieces
from mm1.model.stored import read
from mm1.runs import Run
from mm1.train.datamodule import MM1Data
from tests.conftest import fit, run_config

CLOCK = ("time_s", "positions_per_s", "tflops", "data_wait")


def lines(run: Run) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key not in CLOCK and "seconds/" not in key} for line in run.history()]


def checkpoint_of(path: Path) -> dict[str, Any]:
    return Pieces(path).checkpoint(read=True) if path.is_dir() else torch.load(path, weights_only=True)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint_of(run.last)["state_dict"]


def assert_same(run: Run, other: Run) -> None:
    assert lines(run) == lines(other)
    expected = weights(other)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


def killed(
    folder: Path, config: dict[str, Any], at_step: int, by: signal.Signals = signal.SIGKILL, code: int = -9
) -> Run:
    """Start the run in another process and kill it as soon as it has written metrics of ``at_step``."""
    process = multiprocessing.get_context("fork").Process(target=door, args=(lambda: fit(folder, config),))
    process.start()
    run, deadline_s = Run(folder), time.monotonic() + 120
    while time.monotonic() < deadline_s and process.is_alive():
        if any(line["step"] >= at_step for line in run.history("train")):
            break
        time.sleep(0.005)
    assert process.is_alive(), "the run ended before it could be killed"
    os.kill(process.pid, by)
    process.join(120)
    if process.is_alive():  # it hangs, which is to fail and not to stop all tests
        process.kill()
        process.join()
        raise AssertionError("it did not end")
    assert process.exitcode == code
    return run


@pytest.mark.parametrize(("experts", "micro_batches", "workers"), [(0, 1, 0), (4, 2, 1)])
def test_kill_and_resume_equals_uninterrupted(
    corpus: Path, tmp_path: Path, experts: int, micro_batches: int, workers: int
) -> None:
    config = run_config(corpus, experts, max_steps=30, accumulate_grad_batches=micro_batches, log_every_n_steps=1)
    config["data"]["workers"] = workers
    whole = fit(tmp_path / "whole", config)
    run = killed(tmp_path / "killed", config, at_step=11)
    assert not run.about()["finished"]
    saved_step = torch.load(run.last, weights_only=True)["global_step"]
    assert 9 <= saved_step < 30
    assert_same(fit(tmp_path / "killed", config), whole)
    assert run.about()["finished"]


def test_where_the_parts_came_from_is_remembered_through_training_and_resuming(corpus: Path, tmp_path: Path) -> None:
    first = fit(tmp_path / "first", run_config(corpus, max_steps=1))
    assert read(first.last).origin_json is None
    folder = export(first.last, tmp_path / "folder")
    (folder / "origin.json").write_text('{"format": 1, "decoder": null, "vision": null}')
    config = {**run_config(corpus, max_steps=30, log_every_n_steps=1), "init_from": str(folder)}
    run = killed(tmp_path / "run", config, at_step=5)
    assert read(run.last).origin_json == (folder / "origin.json").read_text()
    assert read(fit(tmp_path / "run", config).last).origin_json == (folder / "origin.json").read_text()
    assert run.about()["finished"]


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(corpus: Path, tmp_path: Path, capfd, workers: int) -> None:
    config = run_config(corpus, max_steps=30, log_every_n_steps=1)
    config["data"]["workers"] = workers
    capfd.readouterr()
    run = killed(tmp_path / "stopped", config, at_step=11, by=signal.SIGINT, code=130)
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("step ", "rows of "))]
    assert told == ["interrupted; what was finished is kept, run the same command to go on"]
    assert_same(fit(run.folder, config), fit(tmp_path / "whole", config))


def test_killed_before_the_first_checkpoint(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, log_every_n_steps=1) | {"save_every_n_steps": 1000}
    run = killed(tmp_path / "killed", config, at_step=2)
    assert not run.last.exists()
    assert_same(fit(tmp_path / "killed", config), fit(tmp_path / "whole", config))


class Stopped(Exception):
    pass


def test_every_document_is_trained_exactly_once_across_resumes_and_splits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three stretches of one run, each split otherwise, see the documents of an undisturbed one."""
    seen: list[tuple[int, str]] = []
    stop_after = 10**9
    trained = MM1Data.trained

    def note(self: MM1Data, batch: Batch) -> None:
        trained(self, batch)
        step = self.trainer.global_step + (batch.state is None)  # not yet counted before its last micro-batch
        seen.extend((step, name) for name in batch.documents)
        if self.trainer.global_step >= stop_after:
            raise Stopped

    monkeypatch.setattr(MM1Data, "trained", note)
    config = run_config(corpus, max_steps=24)
    fit(tmp_path / "whole", config)
    whole, seen[:] = list(seen), []
    for micro_batches, workers, stop_after in ((1, 1, 8), (4, 0, 17), (2, 2, 10**9)):  # noqa: B007
        config["trainer"]["accumulate_grad_batches"] = micro_batches
        config["data"]["workers"] = workers
        with contextlib.suppress(Stopped):
            fit(tmp_path / "parts", config)
        saved_step = torch.load(tmp_path / "parts/checkpoints/last.ckpt", weights_only=True)["global_step"]
        seen[:] = [(step, name) for step, name in seen if step <= saved_step]  # the rest was lost and comes again
    assert [name for _, name in seen] == [name for _, name in whole]
    assert Counter(step for step, _ in seen) == Counter(step for step, _ in whole)


def test_a_finished_run_says_so_and_never_starts_it_over(corpus: Path, tmp_path: Path, capsys) -> None:
    config = run_config(corpus, max_steps=3)
    run = fit(tmp_path / "run", config)
    written = run.last.stat().st_mtime_ns
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path / "run", config)
    assert ended.value.code == 0
    assert "is finished" in capsys.readouterr().out
    assert run.last.stat().st_mtime_ns == written
    fit(tmp_path / "run", config, "--resume", "never")
    assert run.last.stat().st_mtime_ns != written
    assert [line["step"] for line in run.history("train")] == [2, 3]


def test_resuming_what_does_not_belong_together(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, max_steps=3)
    run = fit(tmp_path / "run", config)
    run.update(finished=False)
    with pytest.raises(UserError, match=r"data\.seed"):
        fit(tmp_path / "run", config, "--data.seed", "8", "--trainer.max_steps", "6")
    with pytest.raises(UserError, match=r"does not fit model\.model of this run: 1 tensors misshaped|tensors"):
        fit(tmp_path / "run", config, "--model.model.init_args.decoder.init_args.layers", "3")
    with pytest.raises(
        UserError, match=r"initial_lr of vision = 0\.003, this run has 0\.001; .*restore model\.optimizer"
    ):
        fit(tmp_path / "run", config, "--model.optimizer.lr", "1e-3")
    with pytest.raises(UserError, match=r"part \(with its tensors\) = .*; a resumed run keeps its schedule"):
        fit(tmp_path / "run", config, "--model.optimizer.parts", "{vision: {frozen: true}}")
    checkpoint = torch.load(run.last, weights_only=True)
    for change, told in (
        ({"mm1": {**checkpoint["mm1"], "format": 0}}, "format 0; this version reads format 1 to 3"),
        ({"optimizer_states": None, "loops": None}, "holds weights alone, so there is nothing to go on with"),
    ):
        torch.save({key: value for key, value in {**checkpoint, **change}.items() if value is not None}, run.last)
        with pytest.raises(UserError, match=told):
            fit(tmp_path / "run", config)
    for content in (b"", run.last.read_bytes()[:-9]):
        run.last.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt is not readable as a checkpoint \(cut short\?\)"):
            fit(tmp_path / "run", config)


def test_starting_over_keeps_the_old_run_until_the_new_one_fits(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, max_steps=3)
    run = fit(tmp_path / "run", config)
    before = run.last.read_bytes()
    with pytest.raises(UserError, match="does not exist"):
        fit(tmp_path / "run", config, "--resume", "never", "--data.corpus", str(tmp_path / "nowhere"))
    assert run.last.read_bytes() == before
    assert run.about()["finished"]
