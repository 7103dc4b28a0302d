"""``strategy: Sharded`` in a YAML: the run of one process, and checkpoints that any number of ranks go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

import mm1
from mm1.errors import UserError
from tests.conftest import fit, run_config
from tests.mm1.train.test_parallel import on_ranks


class StopAfterThree(Callback):
    """Ends a run in its middle, after its checkpoint."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 3


def fit_on(ranks: int, folder: Path, config: dict[str, Any], *flags: str) -> dict[str, Tensor]:
    """``mm1-train fit`` on so many ranks; the weights it ends with."""
    config["trainer"]["devices"] = ranks
    if ranks == 1 and "strategy" not in config["trainer"]:
        fit(folder, config, *flags)
    else:
        on_ranks(ranks, _fit, folder, config, flags, joined=False)
    return weights_of(folder / "checkpoints" / "last.ckpt")


def _fit(rank: int, folder: Path, config: dict[str, Any], flags: tuple[str, ...]) -> None:
    fit(folder, config, *flags)


def weights_of(path: Path) -> dict[str, Tensor]:
    return mm1.load(path).model.state_dict()


def one(corpus: Path, steps: int, **trainer: Any) -> dict[str, Any]:
    config = run_config(corpus, 4, max_steps=steps, gradient_clip_val=0.5, **trainer)
    # keys' biases have a gradient of zero but for rounding, which a smaller epsilon would blow up to steps
    config["model"]["optimizer"]["eps"] = 1e-4
    return config


def sharded(corpus: Path, steps: int, micro_batches: int = 1, **axes: int | str) -> dict[str, Any]:
    strategy = {"class_path": "mm1.train.strategy.Sharded", "init_args": axes}
    return one(corpus, steps, accumulate_grad_batches=micro_batches, strategy=strategy)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    apart = {name: float((found[name] - tensor).abs().max()) for name, tensor in expected.items()}
    assert found.keys() == expected.keys()
    assert max(apart.values()) < 1e-5, sorted(apart.items(), key=lambda item: -item[1])[:5]


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Six steps in one process, without this strategy."""
    return fit_on(1, tmp_path_factory.mktemp("one"), one(corpus, 6))


@pytest.mark.parametrize(
    ("ranks", "micro_batches", "axes"),
    [
        (2, 2, {"experts": 2}),
        (2, 2, {"tensor": 2}),
        pytest.param(4, 1, {"tensor": 2, "experts": 4}, marks=pytest.mark.slow),
        pytest.param(4, 2, {"tensor": 2, "replicate": 2}, marks=pytest.mark.slow),
        pytest.param(2, 1, {"experts": 2, "exchange": "overlapped"}, marks=pytest.mark.slow),
        pytest.param(2, 1, {"experts": 2, "exchange": "shadowed"}, marks=pytest.mark.slow),
        pytest.param(1, 1, {}, marks=pytest.mark.slow),
        pytest.param(2, 1, {"experts": 1}, marks=pytest.mark.slow),
        pytest.param(4, 1, {"experts": 2, "replicate": 2}, marks=pytest.mark.slow),
        pytest.param(4, 1, {"experts": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_sharded_run_is_the_run_of_one_process(
    corpus: Path,
    tmp_path: Path,
    undisturbed: dict[str, Tensor],
    ranks: int,
    micro_batches: int,
    axes: dict[str, int | str],
) -> None:
    assert_alike(fit_on(ranks, tmp_path, sharded(corpus, 6, micro_batches, **axes)), undisturbed)


@pytest.mark.parametrize(
    "later",
    [(4, {"experts": 2, "tensor": 2}), pytest.param((1, None), marks=pytest.mark.slow)],
    ids=["more", "one"],
)
def test_another_number_of_ranks_goes_on(
    corpus: Path, tmp_path: Path, undisturbed: dict[str, Tensor], later: tuple[int, dict[str, int] | None]
) -> None:
    """Three steps on two ranks, and three on other ones, are six in one process: weights, moments and data go on."""
    config = sharded(corpus, 6, experts=2)
    config["trainer"]["callbacks"] = [{"class_path": "tests.mm1.train.test_strategy.StopAfterThree"}]
    fit_on(2, tmp_path, config)
    ranks, axes = later
    config = one(corpus, 6) if axes is None else sharded(corpus, 6, **axes)
    assert_alike(fit_on(ranks, tmp_path, config), undisturbed)


def test_weights_are_taken_over(corpus: Path, tmp_path: Path) -> None:
    """``--init_from`` fills shards: at a rate of zero the weights stay those that were taken over."""
    first = fit_on(1, tmp_path / "first", one(corpus, 2))
    config = sharded(corpus, 2, experts=2, exchange="overlapped")
    config["model"]["optimizer"] = {"lr": 0.0}
    config["model"]["seed"] = 1
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert_alike(fit_on(2, tmp_path / "second", config, "--init_from", str(last)), first)


def test_lowered_weights_on_several_ranks_add_up_in_more_bits(corpus: Path, tmp_path: Path) -> None:
    """Two ranks of two micro-batches beside one of four: DDP itself takes gradients in their weights' type alone."""
    found, count = {}, {1: 4, 2: 2}
    for ranks, micro_batches in count.items():
        more: dict[str, Any] = {"strategy": "ddp"} if ranks > 1 else {}
        config = one(corpus, 3, accumulate_grad_batches=micro_batches, **more)
        config["model"]["weights"] = "bfloat16"
        fit_on(ranks, tmp_path / str(ranks), config)
        stored = torch.load(tmp_path / str(ranks) / "checkpoints" / "last.ckpt", weights_only=True)
        found[ranks] = [state["exp_avg"] for state in stored["optimizer_states"][0]["state"].values()]
    off, size = (sum(float(t.square().sum()) for t in part) for part in
                 ([a - b for a, b in zip(found[1], found[2], strict=True)], found[1]))  # fmt: skip
    assert 0 < off < 1e-3 * size


def test_lowered_weights_are_not_shared(corpus: Path, tmp_path: Path) -> None:
    config = sharded(corpus, 1)
    config["model"]["weights"] = "bfloat16"
    on_ranks(1, _refused, tmp_path, config, joined=False)


def _refused(rank: int, folder: Path, config: dict[str, Any]) -> None:
    with pytest.raises((UserError, SystemExit), match=r"expected float32 and trainer\.precision: bf16-mixed|2"):
        fit(folder, config)
