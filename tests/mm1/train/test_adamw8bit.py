"""AdamW with moments in 8 bits: torchao's update to the bit, the curve of full moments, checkpoints, and ranks."""

from __future__ import annotations

import copy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from mm1.errors import UserError
from mm1.model.build import build
from mm1.train import adamw8bit
from mm1.train.adamw8bit import AdamW8bit, InBlocks, block
from mm1.train.parallel import placed
from mm1.train.placing import HALVES, part
from tests.conftest import fit, run_config, tiny_model
from tests.end_to_end.test_resume import assert_same, checkpoint_of, killed
from tests.mm1.train.test_parallel import on_ranks
from tests.mm1.train.test_strategy import StopAfterThree, fit_on, sharded

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: mm1[float8]")
MEAN = {1: 2e-6, 2: 1e-4}  # with ranks that share layers rows of 128 are cut inside their block, and in fp32
CLASS_PATH = "mm1.train.adamw8bit.AdamW8bit"


def optimizer_of(*parameters: nn.Parameter, decay: float = 0.1) -> InBlocks:
    made = AdamW8bit().made([{"params": [*parameters], "lr": 0.01, "weight_decay": decay}], 0.01)
    assert isinstance(made, InBlocks)
    return made


def wide(corpus: Path, experts: int = 0, **trainer: Any) -> dict[str, Any]:
    """A run of a decoder whose rows have whole blocks."""
    config = run_config(corpus, experts, gradient_clip_val=0.5, **trainer)
    config["model"]["model"] = wider(experts)
    config["model"]["optimizer"] = {"class_path": CLASS_PATH, "init_args": {"lr": 1e-3, "warmup_steps": 4}}
    return config


def wider(experts: int) -> dict[str, Any]:
    return tiny_model(experts, width=128)


def test_it_is_torchaos_to_the_bit_where_blocks_are_the_same() -> None:
    from torchao.optim import AdamW8bit as Theirs

    torch.manual_seed(0)
    start, gradients = torch.randn(24, 512), torch.randn(4, 24, 512) * torch.logspace(-4, 0, 24)[:, None]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = optimizer_of(ours), Theirs([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        with torch.compiler.set_stance("force_eager"):
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(ours, theirs)
    kept, expected = optimizers[0].state[ours], optimizers[1].state[theirs]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(kept[name], expected[name].codes)
        assert torch.equal(kept[f"{name}_scale"].flatten(), expected[name].scale)
    plain = torch.optim.AdamW([nn.Parameter(start.clone())], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    weight = plain.param_groups[0]["params"][0]
    for gradient in gradients:
        weight.grad = gradient.clone()
        plain.step()
    apart = (ours - weight).abs().max()
    assert 0 < apart < 0.01  # of four steps of up to 0.01, and not the same
    short = (ours - start)[:, :4].sign()  # nor do small gradients drown in large ones of other rows
    assert float((short == (weight - start)[:, :4].sign()).float().mean()) > 0.95


def test_vectors_and_small_or_odd_tensors_keep_fp32() -> None:
    shapes = {(8192,): None, (63, 64): None, (64, 64): 64, (4, 20, 576): 192, (8, 960): 240, (64, 3, 14, 14): None}
    assert {shape: block(nn.Parameter(torch.zeros(shape))) for shape in shapes} == shapes
    assert block(nn.Parameter(torch.zeros(50, 1103))) is None  # a prime


def test_two_moments_take_little_more_than_two_bytes() -> None:
    weight = nn.Parameter(torch.zeros(64, 1024))
    weight.grad, optimizer = torch.ones_like(weight), optimizer_of(weight)
    optimizer.step()
    kept = sum(tensor.nbytes for tensor in optimizer.state[weight].values() if tensor.ndim)
    assert kept == weight.numel() * 2 * (1 + 4 / 256)


@pytest.mark.slow
def test_compiled_it_is_the_same() -> None:
    """As on a GPU, by the compiler for CPUs: it may round a sum otherwise, which may move a code by one."""
    torch.manual_seed(0)
    _, plain, compiled = adamw8bit._torchao()
    found = []
    for update in (plain, compiled):
        wraps, weight = adamw8bit._torchao()[0], torch.randn(16, 512, generator=torch.Generator().manual_seed(1))
        moments = [wraps.zeros(weight.shape, signed, 256, "cpu", torch.float32) for signed in (True, False)]
        for step in range(1, 4):
            gradient = torch.randn(16, 512, generator=torch.Generator().manual_seed(step))
            rate = torch.tensor(0.01)
            update(weight, gradient, torch.tensor(float(step)), *moments, None, rate, 0.9, 0.95, 0.1, 1e-8, True, False)
        found.append((weight, *(moment.dequantize() for moment in moments)))
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().mean()) < 1e-4 * float(one.abs().mean())


@pytest.mark.parametrize("experts", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_its_curve_is_that_of_full_moments(corpus: Path, tmp_path: Path, experts: int) -> None:
    """Forty steps: every loss within 0.01 nats of AdamW's, while both fall by more than three."""
    config = wide(corpus, experts, max_steps=40, log_every_n_steps=1)
    eight = fit(tmp_path / "eight", config)
    full = {**config, "model": {**config["model"], "optimizer": {"lr": 1e-3, "warmup_steps": 4}}}
    losses = [[line["loss"] for line in run.history("train")] for run in (eight, fit(tmp_path / "full", full))]
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"experts={experts}: at most {apart:.4f} nats apart, {losses[0][0]:.3f} to {losses[0][-1]:.3f}")
    assert 0 < apart < 0.01
    assert losses[0][-1] < losses[0][0] - 3
    kept = moments_of(eight.last).items()
    eighths, rest = (
        sum(t.numel() for n, t in kept if n.endswith("exp_avg") and (t.dtype == torch.uint8) is so)
        for so in (True, False)
    )
    assert eighths > 4 * rest


@pytest.mark.parametrize("layout", ["whole", pytest.param("sharded", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit_and_only_with_its_own_optimizer(
    corpus: Path, tmp_path: Path, layout: str
) -> None:
    config = wide(corpus, 4, max_steps=12, log_every_n_steps=1) | {"checkpoints": layout}
    whole = fit(tmp_path / "whole", config)
    run = killed(tmp_path / "killed", config, at_step=5)
    adamw = {"class_path": "mm1.train.optim.AdamW", "init_args": {"lr": 1e-3, "warmup_steps": 4}}
    with pytest.raises(UserError, match=r"with block of vision = 256, this run has 0; .*restore model\.optimizer"):
        fit(run.folder, {**config, "model": {**config["model"], "optimizer": adamw}})
    assert_same(fit(run.folder, config), whole)
    found, expected = (moments_of(r.last) for r in (run, whole))
    assert any(tensor.dtype == torch.uint8 for tensor in found.values())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def moments_of(path: Path) -> dict[str, Tensor]:
    states = checkpoint_of(path)["optimizer_states"][0]["state"]
    return {f"{index}.{name}": tensor for index, state in states.items() for name, tensor in state.items()}


class NaNAtSix(StopAfterThree):
    """Spoils the loss of step 6."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if trainer.global_step == 5:
            loss.data.fill_(float("nan"))

    def on_train_batch_end(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_bad_steps_never_reach_it(corpus: Path, tmp_path: Path, policy: str) -> None:
    config = wide(corpus, max_steps=8, log_every_n_steps=1) | {"bad_steps": policy}
    config["trainer"]["callbacks"] = [{"class_path": "tests.mm1.train.test_adamw8bit.NaNAtSix"}]
    run = fit(tmp_path, config)
    assert len(list(run.bad_steps.iterdir())) == 1
    counts = {float(tensor) for name, tensor in moments_of(run.last).items() if name.endswith("step")}
    assert counts == {7.0 if policy == "skip" else 5.0}  # back to step 3, and steps 7 and 8
    assert all(torch.isfinite(tensor.float()).all() for tensor in moments_of(run.last).values())


@pytest.mark.parametrize(
    ("axes", "layout"),
    [
        ({"experts": 2}, "sharded"),
        pytest.param({"tensor": 2}, "whole", marks=pytest.mark.slow),
        pytest.param({"replicate": 2}, "whole", marks=pytest.mark.slow),
    ],
)
def test_ranks_that_share_the_model(corpus: Path, tmp_path: Path, axes: dict[str, int], layout: str) -> None:
    """Three steps on two ranks and three more are six, bit for bit; and, as far as sums go, the six of one process."""
    config = on_two(corpus, **axes) | {"checkpoints": layout}
    two = fit_on(2, tmp_path / "two", copy.deepcopy(config))
    stops = {"callbacks": [{"class_path": "tests.mm1.train.test_strategy.StopAfterThree"}]}
    fit_on(2, tmp_path / "parts", {**config, "trainer": {**config["trainer"], **stops}})
    moments = moments_of(tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert any(tensor.dtype == torch.uint8 for tensor in moments.values())
    shutil.copytree(tmp_path / "parts", tmp_path / "fewer", symlinks=True)
    resumed = fit_on(2, tmp_path / "parts", copy.deepcopy(config))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in two.items())
    del config["trainer"]["strategy"]
    one, fewer = (fit_on(1, tmp_path / name, copy.deepcopy(config)) for name in ("one", "fewer"))
    for found in (two, fewer):
        apart = {name: (found[name] - tensor).abs() for name, tensor in one.items()}
        # sums over ranks round otherwise, so a number between two codes may get the other one
        assert max(float(tensor.max()) for tensor in apart.values()) < 4e-4  # of a rate of 1e-3
        assert max(float(tensor.mean()) for tensor in apart.values()) < MEAN[axes.get("tensor", 1)]


CUTS = [
    ((65, 64), Shard(0)),
    ((4, 16, 128), Shard(1)),
    ((64, 512), Shard(1)),
    ((96, 64), HALVES),
    ((1, 8192), Shard(0)),
]


def test_parts_of_a_tensor_have_the_codes_of_the_whole() -> None:
    """However it is cut: uneven, inside, along rows, in halves, and where a rank has nothing."""
    on_ranks(2, _in_parts)


def _in_parts(rank: int) -> None:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ranks",))
    wholes = [nn.Parameter(torch.randn(shape)) for shape, _ in CUTS]
    placements = [[cut] for _, cut in CUTS]

    def parts() -> list[nn.Parameter]:
        return [nn.Parameter(part(w.detach().clone(), mesh, on)) for w, on in zip(wholes, placements, strict=True)]

    def step(*optimizers: InBlocks) -> None:
        gradients = [torch.randn_like(whole) for whole in wholes]
        for optimizer in optimizers:
            for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
                parameter.grad = placed(gradient.clone(), parameter)
            optimizer.step()

    def assert_equal(found: InBlocks, expected: InBlocks) -> None:
        pairs = zip(found.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True)
        for one, other in pairs:
            assert torch.equal(whole_of(one.detach()), other)
            assert expected.state[other]["exp_avg"].dtype == torch.uint8
            for name, tensor in expected.state[other].items():
                assert torch.equal(whole_of(found.state[one][name]), tensor), name

    alone, shared = optimizer_of(*wholes), optimizer_of(*parts())
    for _ in range(3):
        step(alone, shared)
    assert_equal(shared, alone)
    later = optimizer_of(*parts())
    later.load_state_dict(copy.deepcopy(alone.state_dict()))
    step(alone, later)
    assert_equal(later, alone)
    narrow = nn.Parameter(torch.randn(64, 192))  # of which each of two ranks has half a block
    narrow.grad, whole = torch.randn_like(narrow), optimizer_of(narrow)
    whole.step()
    cut = nn.Parameter(part(narrow.detach(), mesh, [Shard(1)]))
    numbers = optimizer_of(cut)
    numbers.load_state_dict(whole.state_dict())
    expected = adamw8bit._moment(whole.state[narrow], "exp_avg").dequantize()  # type: ignore[operator]
    assert torch.equal(whole_of(numbers.state[cut]["exp_avg"]), expected)
    back = optimizer_of(narrow)
    back.load_state_dict(
        {**numbers.state_dict(), "state": {0: {n: whole_of(t) for n, t in numbers.state[cut].items()}}}
    )
    again = adamw8bit._moment(back.state[narrow], "exp_avg").dequantize()  # type: ignore[operator]
    assert float((again - expected).abs().max()) < 0.01 * float(expected.abs().max())


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_two(corpus: Path, **axes: int | str) -> dict[str, Any]:
    config = sharded(corpus, 6, **axes)
    config["model"]["model"] = wider(4)
    arguments = {"lr": 1e-3, "warmup_steps": 4, "eps": 1e-4}
    config["model"]["optimizer"] = {"class_path": CLASS_PATH, "init_args": arguments}
    return config


def test_rules_and_schedule_are_those_of_all_optimizers() -> None:
    model = build(wider(0), device="cpu")
    optimizer, schedule = AdamW8bit(lr=1.0, warmup_steps=2, final_share=0.0)(model, 12)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert 0 < rates[-1] < 0.03


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"keeps no masters.* expected model\.weights float32"):
        optimizer_of(nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16)))
    with pytest.raises(UserError, match=r"betas is \[0\.9, 1\.0\]; expected"):
        AdamW8bit(betas=(0.9, 1.0))(build(tiny_model(), device="cpu"), 10)
    adamw8bit._torchao.cache_clear()
    monkeypatch.setitem(sys.modules, "torchao.optim.adam", None)
    with pytest.raises(UserError, match=r"needs the package torchao, .*pip install 'mm1\[float8\]'"):
        optimizer_of(nn.Parameter(torch.zeros(64, 64)))
