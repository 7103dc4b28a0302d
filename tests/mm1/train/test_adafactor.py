"""Adafactor: its update by hand, torch's where rates are relative, experts apart, and runs that go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mm1.errors import UserError
from mm1.model.build import build
from mm1.train.adafactor import Adafactor
from mm1.train.optim import PartRule
from tests.conftest import fit, run_config, tiny_model
from tests.end_to_end.test_resume import assert_same, killed
from tests.mm1.train.test_strategy import fit_on, sharded


def stepped(parameter: torch.nn.Parameter, gradients: list[torch.Tensor], **settings: Any) -> torch.Tensor:
    factory = Adafactor(**settings)
    optimizer = factory.made([{"params": [parameter], "lr": 0.1, "weight_decay": factory.weight_decay}], 0.1)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_two_steps_of_a_matrix_by_hand() -> None:
    """Row and column means of squares, their product over the mean of the rows, then clipping by root mean square."""
    torch.manual_seed(0)
    start, gradients = torch.randn(20, 24, dtype=torch.float64), torch.randn(2, 20, 24, dtype=torch.float64)
    expected, rows, columns = start.clone(), torch.zeros(20).double(), torch.zeros(24).double()
    for step, gradient in enumerate(gradients, start=1):
        kept = 1 - step**-0.8
        rows = kept * rows + (1 - kept) * (gradient**2).mean(1)
        columns = kept * columns + (1 - kept) * (gradient**2).mean(0)
        update = gradient / (rows[:, None] * columns[None] / rows.mean()).sqrt()
        expected -= 0.1 * update / max(1.0, float((update**2).mean().sqrt()))
    torch.testing.assert_close(stepped(torch.nn.Parameter(start), list(gradients)), expected)


def test_a_vector_keeps_every_square_and_decay_is_multiplied_by_the_rate() -> None:
    start, gradient = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, -4.0, 0.0])
    found = stepped(torch.nn.Parameter(start.clone()), [gradient], weight_decay=0.5)
    moved = torch.tensor([1.0, -1.0, 0.0])  # the first update is the sign, and no longer than 1 in the mean
    torch.testing.assert_close(found, start * (1 - 0.1 * 0.5) - 0.1 * moved)


def test_relative_rates_are_torchs_own() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(20, 24), list(torch.randn(3, 20, 24))
    ours = stepped(torch.nn.Parameter(start.clone()), gradients, relative=True)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adafactor([theirs], lr=0.1)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach())
    still = stepped(torch.nn.Parameter(start.clone()), gradients)
    assert not torch.allclose(ours, still)


def test_experts_do_not_share_means() -> None:
    """Each of 20 stacked matrices moves as it would alone."""
    torch.manual_seed(0)
    start, gradient = torch.randn(20, 18, 24), torch.randn(20, 18, 24) * torch.logspace(-3, 3, 20)[:, None, None]
    together = stepped(torch.nn.Parameter(start.clone()), [gradient], clip_rms=1e9)
    alone = [stepped(torch.nn.Parameter(m.clone()), [g], clip_rms=1e9) for m, g in zip(start, gradient, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_it_keeps_far_less_than_two_numbers_a_parameter() -> None:
    model = build(tiny_model(experts=4), device="cpu")
    optimizer, _ = Adafactor(lr=1e-3)(model, 10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert kept < 0.2 * sum(parameter.numel() for parameter in model.parameters())


def test_rules_and_schedule_are_those_of_all_optimizers() -> None:
    model = build(tiny_model(), device="cpu")
    factory = Adafactor(lr=1.0, warmup_steps=2, parts={"vision": PartRule(lr_scale=0.5)})
    optimizer, schedule = factory(model, 12)
    rates = []
    for _ in range(12):
        rates.append({group["part"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert [rate["decoder"] for rate in rates[:3]] == [0.5, 1.0, 1.0]
    assert all(rate["vision"] == rate["decoder"] / 2 for rate in rates)
    assert 0 < rates[-1]["decoder"] < 0.03  # to nothing


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"decay_rate": 0.8}, r"decay_rate is 0\.8; expected"), ({"clip_rms": 0.0}, r"clip_rms is 0\.0; expected")],
)
def test_numbers_that_cannot_be(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Adafactor(**wrong)(build(tiny_model(), device="cpu"), 10)


def test_a_killed_run_goes_on_bit_for_bit_and_only_with_its_own_optimizer(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, experts=4, max_steps=24, log_every_n_steps=1)
    optimizer = {"class_path": "mm1.train.adafactor.Adafactor", "init_args": {"lr": 3e-3, "warmup_steps": 4}}
    config["model"]["optimizer"] = optimizer
    whole = fit(tmp_path / "whole", config)
    run = killed(tmp_path / "killed", config, at_step=9)
    with pytest.raises(
        UserError, match=r"decay_rate of vision = -0\.8, this run has -0\.5; .*restore model\.optimizer"
    ):
        fit(run.folder, config, "--model.optimizer.decay_rate", "-0.5")
    adamw = {**config, "model": {**config["model"], "optimizer": {"lr": 3e-3, "warmup_steps": 4, "weight_decay": 0.0}}}
    with pytest.raises(UserError, match="this run has"):
        fit(run.folder, adamw)
    assert_same(fit(run.folder, config), whole)
    assert whole.history("train")[-1]["loss"] < whole.history("train")[0]["loss"] - 1


def test_weights_in_bfloat16_are_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(20, 24, dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"keeps no masters.* expected model\.weights float32"):
        stepped(parameter, [])


def test_ranks_that_share_the_model_refuse_it(corpus: Path, tmp_path: Path) -> None:
    config = sharded(corpus, 2)
    config["model"]["optimizer"] = {"class_path": "mm1.train.adafactor.Adafactor", "init_args": {"lr": 1e-3}}
    with pytest.raises(Exception, match="whose means of rows and columns are of whole matrices"):
        fit_on(2, tmp_path, config)
