"""AdamW with masters: torch's numbers, bfloat16 weights that learn as fp32 ones do, verdicts that are obeyed."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from mm1.errors import UserError
from mm1.train import masters
from mm1.train.masters import MasterAdamW
from tests.conftest import fit, run_config
from tests.end_to_end.test_resume import checkpoint_of


class Until(Callback):
    """Ends a run after a step, with its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = ((130, 17), (11,), (64, 33))


def made(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[nn.Parameter], MasterAdamW]:
    g = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=g).bfloat16().to(dtype)) for shape in SHAPES]
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "lr": 3e-3}]
    return parameters, MasterAdamW(groups, **SETTINGS, **options)


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int, seed: int = 2) -> None:
    """Gradients that bfloat16 holds exactly, so that runs differ by their weights alone."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=g).bfloat16().to(parameter.dtype)
        optimizer.step()


def test_in_fp32_it_is_torchs_own():
    ours, optimizer = made()
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    groups = [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "lr": 3e-3, "weight_decay": 0.0}]
    train(ours, optimizer, 20)
    train(theirs, torch.optim.AdamW(groups, **SETTINGS), 20)
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_a_bfloat16_weight_is_the_rounding_of_the_fp32_one():
    whole, whole_optimizer = made()
    half, half_optimizer = made(torch.bfloat16)
    train(whole, whole_optimizer, 20)
    train(half, half_optimizer, 20)
    for found, expected in zip(half, whole, strict=True):
        assert torch.equal(half_optimizer.state[found]["master"], expected)
        assert torch.equal(found, expected.bfloat16())


def test_without_masters_small_steps_are_lost():
    half, optimizer = made(torch.bfloat16, masters=False)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-6
    before = [p.detach().clone() for p in half]
    train(half, optimizer, 20)
    large = [(p.abs() > 0.1) for p in before]
    assert all(torch.equal(p[at], was[at]) for p, was, at in zip(half, before, large, strict=True))


def test_moments_in_bfloat16_stay_near():
    whole, whole_optimizer = made()
    less, less_optimizer = made(states="bfloat16")
    train(whole, whole_optimizer, 20)
    train(less, less_optimizer, 20)
    assert less_optimizer.state[less[0]]["exp_avg"].dtype == torch.bfloat16
    for found, expected in zip(less, whole, strict=True):
        assert torch.allclose(found, expected, atol=5e-3)
        assert not torch.equal(found, expected)


def test_a_step_that_is_to_be_skipped_changes_nothing_and_is_not_counted():
    parameters, optimizer = made(torch.bfloat16)
    train(parameters, optimizer, 3)
    before = copy.deepcopy([optimizer.state[p] for p in parameters]), [p.detach().clone() for p in parameters]
    optimizer.skip = torch.tensor(True)
    train(parameters, optimizer, 1)
    assert optimizer.skip is None
    for parameter, state, value in zip(parameters, *before, strict=True):
        assert torch.equal(parameter, value)
        assert all(torch.equal(optimizer.state[parameter][name], state[name]) for name in state)
    train(parameters, optimizer, 1)
    assert optimizer.state[parameters[0]]["step"] == 4


def test_a_scale_is_a_gradient_that_was_clipped():
    scaled, optimizer = made()
    clipped, other = made()
    for _ in range(3):
        g = torch.Generator().manual_seed(3)
        for some in (scaled, clipped):
            g.manual_seed(3)
            for parameter in some:
                parameter.grad = torch.randn(parameter.shape, generator=g)
        norm = torch.nn.utils.clip_grad_norm_(clipped, 0.5)
        optimizer.scale = (0.5 / (norm + 1e-6)).clamp(max=1)
        optimizer.step()
        other.step()
    for found, expected in zip(scaled, clipped, strict=True):
        assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("states", ["float32", "bfloat16"])
def test_it_goes_on_from_a_state(states):
    straight, optimizer = made(torch.bfloat16, states=states)
    train(straight, optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in straight]
    train(straight, optimizer, 3, seed=9)
    resumed, other = made(torch.bfloat16, states=states)
    with torch.no_grad():
        for parameter, value in zip(resumed, saved[1], strict=True):
            parameter.copy_(value)
    other.load_state_dict(saved[0])
    assert other.state[resumed[0]]["master"].dtype == torch.float32
    train(resumed, other, 3, seed=9)
    for found, expected in zip(resumed, straight, strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(other.state[found]["master"], optimizer.state[expected]["master"])


def test_the_count_of_steps_is_loaded_to_where_the_weights_are():
    """A checkpoint is read to the CPU, and torch leaves counts there; a verdict on the device is added to them."""
    parameters, optimizer = made(torch.bfloat16)
    train(parameters, optimizer, 2)
    elsewhere = [nn.Parameter(torch.empty(shape, device="meta", dtype=torch.bfloat16)) for shape in SHAPES]
    other = MasterAdamW([{"params": elsewhere[:2]}, {"params": elsewhere[2:]}], **SETTINGS)
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert {value.device.type for state in other.state.values() for value in state.values()} == {"meta"}
    again, third = made(torch.bfloat16)
    third.load_state_dict(saved)
    train(again, third, 1)
    assert optimizer.state[parameters[0]]["step"] == 2  # what was loaded is not what is counted on


@pytest.mark.parametrize("resumed", [False, True])
def test_a_parameter_that_learns_late_does_not_start_the_count_over(resumed):
    parameters, optimizer = made()
    first, *others = parameters
    train(others, optimizer, 3)
    if resumed:
        saved = copy.deepcopy(optimizer.state_dict())
        parameters, optimizer = made()
        first, *others = parameters
        optimizer.load_state_dict(saved)
        train(others, optimizer, 1)
    train(parameters, optimizer, 1)
    assert {float(optimizer.state[p]["step"]) for p in parameters} == {5.0 if resumed else 4.0}
    assert first.isfinite().all()


@pytest.mark.parametrize(("dtype", "states", "kept"), [
    (torch.float32, "float32", True),
    (torch.bfloat16, "float32", True),
    (torch.bfloat16, "bfloat16", False),
])  # fmt: skip
def test_the_kernel_computes_the_same(monkeypatch, dtype, states, kept):
    pytest.importorskip("triton", reason="Triton is not installed")
    found = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for kernel in (False, True):
        monkeypatch.setattr(masters, "_in_one_pass", lambda work, kernel=kernel: kernel)
        parameters, optimizer = made(dtype, states=states, masters=kept)
        for parameter in parameters:
            parameter.data = parameter.data.to(device)
        for step in range(4):
            for parameter in parameters:
                g = torch.Generator().manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, generator=g).to(parameter)
            optimizer.scale, optimizer.skip = torch.tensor(0.5, device=device), torch.tensor(step == 2, device=device)
            optimizer.step()
        found.append([optimizer.state[p].get("master", p).float() for p in parameters])
        assert optimizer.state[parameters[0]]["step"] == 3
    rounding = 1e-6 if dtype == torch.float32 else 1e-5 if kept else 0.04
    for plain, fused in zip(*found, strict=True):
        assert torch.allclose(plain, fused, atol=rounding, rtol=rounding)


def test_a_run_in_bfloat16_learns_as_one_in_fp32_does(make_corpus, tmp_path):
    """Twenty steps in two micro-batches each: losses within 2 %, which is what 8 bits do to a loss of 5 nats."""
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    losses = {}
    for weights in ("float32", "bfloat16"):
        config = run_config(corpus, experts=4, accumulate_grad_batches=2, max_steps=20)
        config["model"]["weights"] = weights
        run = fit(tmp_path / weights, config)
        losses[weights] = [line["loss"] for line in run.history("train")]
        assert losses[weights][-1] < losses[weights][0] - 0.3
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    stored = torch.load(run.last, weights_only=True)
    kinds = {name: tensor.dtype for name, tensor in stored["state_dict"].items()}
    assert kinds["model.decoder.norm.weight"] == torch.bfloat16
    assert all(kind == torch.float32 for name, kind in kinds.items() if ".router." in name)
    states = stored["optimizer_states"][0]["state"].values()
    assert sum("master" in state for state in states) == sum(kind == torch.bfloat16 for kind in kinds.values())


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_a_run_goes_on_with_its_masters_and_only_with_its_type(make_corpus, tmp_path, layout):
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    ends = {}
    for name, stops in (("straight", [6]), ("halted", [3, 6])):
        for steps in stops:
            config = run_config(
                corpus, max_steps=6, callbacks=[{"class_path": f"{__name__}.Until", "init_args": {"step": steps}}]
            )
            config["model"]["weights"] = "bfloat16"
            run = fit(tmp_path / name, config | {"checkpoints": layout})
        ends[name] = checkpoint_of(run.last)
    torch.testing.assert_close(ends["halted"]["state_dict"], ends["straight"]["state_dict"], rtol=0, atol=0)
    states = [ends[name]["optimizer_states"][0]["state"] for name in ("halted", "straight")]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert sum("master" in state for state in states[0].values()) > 10
    for first, second in (("bfloat16", "float32"), ("float32", "bfloat16")):
        config = run_config(
            corpus, max_steps=6, callbacks=[{"class_path": f"{__name__}.Until", "init_args": {"step": 3}}]
        )
        config["model"]["weights"] = first
        fit(tmp_path / first, config | {"checkpoints": layout})
        config["model"]["weights"] = second
        with pytest.raises(
            UserError, match=rf"has weights in {first}, this run in {second}; .* restore model\.weights"
        ):
            fit(tmp_path / first, config)


def test_bfloat16_weights_under_autocast_are_refused(make_corpus, tmp_path):
    config = run_config(make_corpus(captions=41, interleaved=30, text=17), precision="bf16-mixed")
    config["model"]["weights"] = "bfloat16"
    with pytest.raises(UserError, match=r"trainer\.precision bf16-mixed; expected 32-true"):
        fit(tmp_path / "run", config)
