"""Losses that are no number or leap stop a run, are skipped or rolled back, on all ranks alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from mm1.batch import Batch
from mm1.errors import UserError
from mm1.runs import Run
from mm1.train.bad_steps import BadSteps
from mm1.train.masters import MasterAdamW
from tests.conftest import ROW_TOKENS, fit, run_config
from tests.end_to_end.test_resume import checkpoint_of
from tests.mm1.train.test_adapting_routers import BIAS, adapting
from tests.mm1.train.test_strategy import fit_on

BAD = 8
NOBODY: Any = (None, None)


class Damage(Callback):
    """Damage a weight of one rank before a step, as memory that flips a bit does; mended after it if it passes."""

    def __init__(self, value: float = float("nan"), rank: int = 0, passes: bool = False) -> None:
        self.value, self.rank, self.passes = value, rank, passes

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step + 1 == BAD and trainer.global_rank == self.rank:
            weight = pl_module.model.decoder.norm.weight.data
            self.before = weight[0].item()
            weight[0] = self.value

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == BAD and trainer.global_rank == self.rank and self.passes:
            pl_module.model.decoder.norm.weight.data[0] = self.before


class Note(Callback):
    """Write the weights down after every step."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        torch.save(state, f"{trainer.default_root_dir}/weights-{trainer.global_step}-{trainer.global_rank}.pt")


def named(cls: type, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.{cls.__name__}", "init_args": init_args}


def damaged(corpus: Path, policy: str, **damage: Any) -> dict[str, Any]:
    config = run_config(corpus, callbacks=[named(Note), named(Damage, **damage)])
    return config | {"bad_steps": policy}


def weights(run: Run, step: int, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(run.folder / f"weights-{step}-{rank}.pt", weights_only=True)


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def test_no_pictures_are_held() -> None:
    """A slice of them would keep the memory of all."""
    zeros_BT = torch.zeros(1, 4, dtype=torch.int64)
    images_ICHW = torch.zeros(5, 3, 28, 28, dtype=torch.uint8)
    judge = BadSteps()
    judge.on_train_batch_start(*NOBODY, Batch(zeros_BT, zeros_BT, zeros_BT, zeros_BT, zeros_BT, images_ICHW), 0)
    [held] = judge.micro_batches
    assert held.images_ICHW.shape == (0, 3, 28, 28)
    assert held.images_ICHW.untyped_storage().nbytes() == 0


def test_nan_stops_the_run_before_it_reaches_the_weights(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of step 8 is nan; its batch is in \S+bad_steps, the weights before"):
        fit(tmp_path, damaged(corpus, "stop"))
    run = Run(tmp_path)
    [file] = run.bad_steps.iterdir()
    saved = torch.load(file, weights_only=True)
    assert (file.name, saved["step"], saved["rank"]) == ("step-00000008-rank-0.pt", 8, 0)
    [batch] = saved["micro_batches"]
    assert batch["tokens_BT"].shape == batch["positions_BT"].shape == (4, ROW_TOKENS)
    assert len(batch["documents"]) > 4
    assert "images_ICHW" not in batch
    checkpoint = torch.load(run.last, weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())
    about = yaml.safe_load((tmp_path / "run.json").read_text())
    assert about["diverged"]
    assert not about["finished"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_batch_that_cannot_be_kept_hides_nothing(corpus: Path, tmp_path: Path, caplog) -> None:
    run = Run(tmp_path)
    run.bad_steps.mkdir()
    for name in ("step-00000008-rank-0.pt", "step-00000008-rank-0.pt.tmp"):
        (run.bad_steps / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match="the loss of step 8 is nan"):
        fit(tmp_path, damaged(corpus, "stop"))
    assert "the batch of step 8 cannot be kept" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_skipped_step_changes_nothing_and_training_goes_on(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path, damaged(corpus, "skip", passes=True))
    assert [path.name for path in run.bad_steps.iterdir()] == ["step-00000008-rank-0.pt"]
    assert run.about()["finished"]
    before, after = weights(run, 7), weights(run, 9)
    skipped = torch.load(run.last, weights_only=True)["optimizer_states"][0]["state"][0]["step"]
    assert skipped == 11  # of twelve
    assert not same(before, after)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    name = "model.decoder.embedding.weight"
    assert torch.equal(weights(run, 8)[name], before[name])


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_rolled_back_to_the_last_checkpoint(corpus: Path, tmp_path: Path, layout: str) -> None:
    """The damage stays, so skipping alone would never end."""
    run = fit(tmp_path, damaged(corpus, "roll_back") | {"checkpoints": layout})
    assert run.about()["finished"]
    assert not same(weights(run, 8), weights(run, 7))
    whole = fit(tmp_path / "whole", run_config(corpus, callbacks=[named(Note)]))
    assert same(weights(whole, 7), weights(run, 7))
    lines = {line["step"]: line for line in run.history("train")}
    expected = {line["step"]: line for line in whole.history("train")}
    assert [lines[step]["positions"] for step in lines] == [expected[step]["positions"] for step in lines]
    assert lines[10]["lr/decoder"] == expected[10]["lr/decoder"]
    assert checkpoint_of(run.last)["optimizer_states"][0]["state"][0]["step"] == 6 + 4


def test_what_is_gone_back_to_may_be_of_an_earlier_format(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when nothing has been saved since a run went on from one."""
    name, brought = "model.decoder.norm.weight", 0.5

    def newer(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"][name].fill_(brought)

    monkeypatch.setattr("mm1.train.bad_steps.upgrade", newer)
    run = fit(tmp_path, damaged(corpus, "roll_back"))
    assert torch.equal(weights(run, 8)[name], torch.full_like(weights(run, 7)[name], brought))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host hears of a step in the next one, as on a GPU."""
    monkeypatch.setattr("mm1.train.bad_steps.obeys_on_device", lambda optimizer, _: isinstance(optimizer, MasterAdamW))


def damaged_late(corpus: Path, policy: str, **settings: Any) -> dict[str, Any]:
    config = damaged(corpus, policy) | settings
    config["model"]["optimizer"]["states"] = "bfloat16"  # by MasterAdamW, on a CPU too
    return config


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("layout", ["whole", "sharded"])
@pytest.mark.parametrize("every", [4, 3])
def test_a_verdict_that_comes_late_is_heard_before_a_checkpoint(
    corpus: Path, tmp_path: Path, layout: str, every: int
) -> None:
    """Else that of step 8 would be of damaged weights, and what is gone back to; step 9 is lost if none is due."""
    settings = {"checkpoints": layout, "save_every_n_steps": every, "keep_every_n_steps": every}
    run = fit(tmp_path, damaged_late(corpus, "roll_back", **settings))
    assert run.about()["finished"]
    last_good, first = (4, 8) if every == 4 else (6, 9)
    stored = {step: checkpoint_of(run.kept(step)) for step in (last_good, first)}
    assert same(stored[last_good]["state_dict"], stored[first]["state_dict"])
    assert checkpoint_of(run.last)["optimizer_states"][0]["state"][0]["step"] == last_good + 12 - first
    assert [path.name for path in run.bad_steps.iterdir()] == ["step-00000008-rank-0.pt"]


@pytest.mark.parametrize("heard", ["at once", "late"])
def test_routers_that_adapt_learn_nothing_of_a_bad_step(
    corpus: Path, tmp_path: Path, heard: str, request: pytest.FixtureRequest
) -> None:
    config = damaged(corpus, "skip", passes=True)
    if heard == "late":
        request.getfixturevalue("late")
        config["model"]["optimizer"]["states"] = "bfloat16"
    config["model"]["model"] = adapting()
    run = fit(tmp_path, config)
    biases = {step: weights(run, step)[f"model.{BIAS}"] for step in range(6, 10)}
    assert torch.equal(biases[8], biases[7])
    assert not torch.equal(biases[7], biases[6])
    assert not torch.equal(biases[9], biases[8])


@pytest.mark.usefixtures("late")
def test_a_late_verdict_stops_before_the_checkpoint_of_its_step(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss of step 8 is nan"):
        fit(tmp_path, damaged_late(corpus, "stop", save_every_n_steps=4))
    assert checkpoint_of(Run(tmp_path).last)["global_step"] == 4


@pytest.mark.parametrize("policy", ["stop", "roll_back"])
def test_ranks_agree_on_what_only_one_of_them_met(corpus: Path, tmp_path: Path, policy: str) -> None:
    config = damaged(corpus, policy, rank=1)
    run = Run(tmp_path)
    if policy == "stop":
        with pytest.raises(Exception, match="the loss of step 8 is nan"):
            fit_on(2, tmp_path, config)
        assert run.about()["diverged"]
    else:
        fit_on(2, tmp_path, config)
        assert run.about()["finished"]
        assert same(weights(run, 12, 0), weights(run, 12, 1))
        assert all(torch.isfinite(tensor).all() for tensor in weights(run, 12).values())
    assert [path.name for path in run.bad_steps.iterdir()] == ["step-00000008-rank-1.pt"]


def test_what_skipping_does_not_mend_stops_in_the_end(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, gradient_clip_val=0) | {"bad_steps": "skip", "most_bad_steps": 3}
    config["model"]["optimizer"] = {"lr": 1e30, "warmup_steps": 0}
    with pytest.raises(UserError, match=r"of step \d+ is .* bad step number 3 \(most_bad_steps is 3\)"):
        fit(tmp_path, config)
    assert len(list(Run(tmp_path).bad_steps.iterdir())) == 3


def test_nothing_to_roll_back_to(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no \S+last\.ckpt to roll back to"):
        fit(tmp_path, damaged(corpus, "roll_back") | {"save_every_n_steps": 100})


def test_a_leap_is_bad_too(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm1.train.bad_steps.FEW", 5)
    leap = {"value": 300.0, "passes": True}
    run = fit(tmp_path / "all", damaged(corpus, "skip", **leap))
    assert not run.bad_steps.exists()
    run = fit(tmp_path / "run", damaged(corpus, "skip", **leap) | {"spike_nats": 1.0})
    [file] = run.bad_steps.iterdir()
    assert "usual is" in torch.load(file, weights_only=True)["why"]
