"""What a checkpoint holds and which are kept: random state of every rank, older formats, the newest ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import mm1
from mm1.errors import UserError
from mm1.runs import Run
from mm1.train.chance import begin, restore, state
from tests.conftest import fit, run_config
from tests.end_to_end.test_resume import assert_same, checkpoint_of, killed, weights
from tests.mm1.train.test_strategy import StopAfterThree, fit_on

CPU = torch.device("cpu")


def noisy(corpus: Path, **trainer: Any) -> dict[str, Any]:
    """A run that draws random numbers in every step: noise in its routers, dropout in its decoder and experts."""
    config = run_config(corpus, 4, log_every_n_steps=1, **trainer)
    decoder = config["model"]["model"]["init_args"]["decoder"]["init_args"]
    decoder["dropout"] = 0.2
    decoder["moe"]["init_args"] |= {
        "expert_dropout": 0.1,
        "router": {"class_path": "mm1.model.moe.routers.NoisyTopK"},
    }
    return config


def drawn() -> tuple[float, float, list[float]]:
    return random.random(), float(numpy.random.rand()), torch.rand(3).tolist()


def test_generators_go_on_where_they_were_saved(tmp_path: Path) -> None:
    begin(0, 5, 1)
    random.gauss(0, 1), numpy.random.randn()  # which keep half of what they drew for the next call
    torch.save(state(CPU), tmp_path / "state.pt")
    expected = drawn(), random.gauss(0, 1), numpy.random.randn()
    begin(0, 5, 2)
    assert drawn() != expected[0]
    restore(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert (drawn(), random.gauss(0, 1), numpy.random.randn()) == expected


def test_a_killed_run_draws_the_same_noise(corpus: Path, tmp_path: Path) -> None:
    config = noisy(corpus, max_steps=20, accumulate_grad_batches=2)
    whole = fit(tmp_path / "whole", config)
    killed(tmp_path / "killed", config, at_step=8)
    assert_same(fit(tmp_path / "killed", config), whole)


def test_ranks_draw_their_own_noise_and_go_on_with_it(corpus: Path, tmp_path: Path) -> None:
    config = noisy(corpus, max_steps=6)
    fit_on(2, tmp_path / "whole", config)
    config["trainer"]["callbacks"] = [{"class_path": f"tests.mm1.train.test_strategy.{StopAfterThree.__name__}"}]
    fit_on(2, tmp_path / "parts", config)
    saved = torch.load(Run(tmp_path / "parts").last, weights_only=True)
    assert saved["global_step"] == 3
    mine, yours = saved["mm1"]["chance"]
    assert not torch.equal(mine["torch"], yours["torch"])
    del config["trainer"]["callbacks"]
    fit_on(2, tmp_path / "parts", config)
    parts, whole = Run(tmp_path / "parts"), Run(tmp_path / "whole")
    losses = [[(line["step"], line["loss"]) for line in run.history("train")] for run in (parts, whole)]
    assert losses[0] == losses[1]
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(parts).items())


@pytest.mark.parametrize(("format", "then"), [(1, "whole"), (2, "sharded")])
def test_checkpoints_of_older_formats_are_read_and_gone_on_with(
    corpus: Path, tmp_path: Path, format: int, then: str
) -> None:
    """Format 1 had no random state; a run without noise goes on from it bit for bit. Both were files."""
    config = run_config(corpus, max_steps=6)
    whole = fit(tmp_path / "whole", config)
    older = Run(tmp_path / "older")
    config["trainer"]["callbacks"] = [{"class_path": "tests.mm1.train.test_strategy.StopAfterThree"}]
    fit(older.folder, config)
    checkpoint = torch.load(older.last, weights_only=True)
    assert checkpoint["mm1"]["format"] == 3
    if format == 1:
        del checkpoint["mm1"]["chance"]
    checkpoint["mm1"]["format"] = format
    torch.save(checkpoint, older.last)
    assert mm1.load(older.last).model.decoder.width == 32
    del config["trainer"]["callbacks"]
    fit(older.folder, config | {"checkpoints": then})
    assert older.last.is_dir() == (then == "sharded")
    found = checkpoint_of(older.last)
    assert found["mm1"]["format"] == 3
    expected = torch.load(whole.last, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found["state_dict"].items())


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [(3, 0, [8, 10, 11]), (2, 4, [4, 8, 10, 11]), (1, 4, [4, 8])],
)
@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_so_many_are_kept(
    corpus: Path, tmp_path: Path, keep_last: int, keep_every: int, expected: list[int], layout: str
) -> None:
    config = run_config(corpus, max_steps=11) | {"validate_every_n_steps": 100, "checkpoints": layout}
    config |= {"save_every_n_steps": 2, "keep_last": keep_last, "keep_every_n_steps": keep_every}
    run = fit(tmp_path, config)
    expected = expected if layout == "whole" or 11 in expected else [*expected, 11]  # which last.ckpt leads to
    assert list(run.all_kept()) == expected
    assert {path.name for path in run.last.parent.iterdir()} == {
        "last.ckpt",
        *(p.name for p in run.all_kept().values()),
    }
    for step, path in run.all_kept().items():
        assert checkpoint_of(path)["global_step"] == step
        assert mm1.load(path).model.decoder.width == 32


def test_what_cannot_be_kept_is_refused(corpus: Path, tmp_path: Path) -> None:
    for change, told in (
        ({"keep_last": 0}, "keep_last is 0; expected at least 1"),
        ({"keep_every_n_steps": 4}, "keep_every_n_steps is 4; expected a multiple of save_every_n_steps, which is 3"),
    ):
        with pytest.raises(UserError, match=told):
            fit(tmp_path, run_config(corpus) | change)
