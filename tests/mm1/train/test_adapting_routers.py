"""Routers that adapt by themselves: told once a step of all ranks and micro-batches, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.errors import UserError
from mm1.model.build import build
from mm1.train.__main__ import TRAINER
from mm1.train.datamodule import MM1Data
from mm1.train.module import Objective
from mm1.train.optim import AdamW
from tests.conftest import ROW_TOKENS, fit, run_config, tiny_model

RATE = 0.125
BIAS = "decoder.layers.1.ffn.router.bias"


def adapting() -> dict[str, Any]:
    tree = tiny_model(experts=4)
    moe = tree["init_args"]["decoder"]["init_args"]["moe"]["init_args"]
    moe["router"] = {"class_path": "mm1.model.moe.routers.Sigmoid", "init_args": {"rate": RATE}}
    return tree


class Keep(Callback):
    """Write down the bias after each step, and the load that it was told of."""

    def __init__(self, path: Path) -> None:
        self.path, self.biases = path, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.biases.append(pl_module.model.state_dict()[BIAS].clone())
            load_LE = pl_module.over_ranks(pl_module.step_sums.load_LGE.sum(1))
            if trainer.is_global_zero:
                torch.save({"biases": self.biases, "load": load_LE[0]}, self.path)


def two_steps(corpus: Path, path: Path, ranks: int, micro_batches: int) -> dict[str, Any]:
    model = build(adapting())
    trainer = lightning.Trainer(
        **TRAINER | {"gradient_clip_val": None, "limit_val_batches": 0},
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp_fork",
        accumulate_grad_batches=micro_batches,
        max_steps=2,
        callbacks=[Keep(path)],
        default_root_dir=path.parent,
    )
    data = MM1Data(corpus, model.image_spec, row_tokens=ROW_TOKENS, rows_per_step=8, images_per_row=5, workers=0)
    trainer.fit(Objective(model, AdamW(lr=1e-6)), datamodule=data)
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # weights that a fork hands back
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 2)])
def test_a_step_moves_the_bias_once_by_the_load_of_all_ranks_and_micro_batches(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, micro_batches: int
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    whole = two_steps(corpus, tmp_path / "whole.pt", ranks=1, micro_batches=1)
    split = two_steps(corpus, tmp_path / "split.pt", ranks=ranks, micro_batches=micro_batches)
    first, second = whole["biases"]
    assert set(first.abs().tolist()) <= {0.0, RATE}
    assert torch.equal(second - first, RATE * (whole["load"].mean() - whole["load"]).sign())
    assert torch.equal(split["load"], whole["load"])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(split["biases"], whole["biases"], strict=True))


def test_a_resumed_run_goes_on_with_the_bias_it_had(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(corpus, max_steps=9)
    config["model"]["model"] = adapting()
    whole = fit(tmp_path / "whole", config)
    trained = MM1Data.trained

    def stopped(self: MM1Data, batch: Any) -> None:
        trained(self, batch)
        if self.trainer.global_step >= 5:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(MM1Data, "trained", stopped)
        with pytest.raises(InterruptedError):
            fit(tmp_path / "parts", config)
    parts = fit(tmp_path / "parts", config)
    expected = torch.load(whole.last, weights_only=True)["state_dict"]
    found = torch.load(parts.last, weights_only=True)["state_dict"]
    assert expected["model." + BIAS].abs().max() > 0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_tasks_are_the_sources_in_their_order(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, max_steps=2)
    tree = tiny_model(experts=4)
    moe = tree["init_args"]["decoder"]["init_args"]["moe"]["init_args"]
    tasks = ["captions", "interleaved", "text"]
    moe["router"] = {"class_path": "mm1.model.moe.routers.ByTask", "init_args": {"tasks": tasks}}
    config["model"]["model"] = tree
    assert fit(tmp_path / "run", config).about()["finished"]
    tasks.reverse()
    with pytest.raises(UserError, match="the tasks are text, interleaved, captions, the sources of the data captions"):
        fit(tmp_path / "other", config)
