"""The loss is per target of the global batch: however a batch is spread, the gradient is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.model.build import build
from mm1.train.__main__ import TRAINER
from mm1.train.datamodule import MM1Data
from mm1.train.held_out import HeldOutLoss
from mm1.train.module import Objective
from mm1.train.optim import AdamW
from tests.conftest import ROW_TOKENS, tiny_model


class KeepGradients(Callback):
    """Write down what the first step would do to the weights, and the loss it would report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = {name: parameter.grad for name, parameter in pl_module.named_parameters()}
        totals = {
            name: pl_module.over_ranks(getattr(pl_module.step_sums, name)) for name in ("cross_entropy", "targets")
        }
        if trainer.is_global_zero:
            torch.save({"gradients": gradients, **totals}, self.path)


def first_step(corpus: Path, path: Path, experts: int, ranks: int, micro_batches: int) -> dict[str, Any]:
    model = build(tiny_model(experts))
    trainer = lightning.Trainer(
        **TRAINER | {"gradient_clip_val": None, "limit_val_batches": 0},
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp_fork",
        accumulate_grad_batches=micro_batches,
        max_steps=1,
        callbacks=[KeepGradients(path)],
        default_root_dir=path.parent,
    )
    data = MM1Data(corpus, model.image_spec, row_tokens=ROW_TOKENS, rows_per_step=8, images_per_row=5, workers=0)
    trainer.fit(Objective(model, AdamW(lr=1e-3)), datamodule=data)
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # weights that a fork hands back
@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize(
    ("ranks", "micro_batches"),
    [(1, 4), (1, 8), (2, 2), pytest.param(4, 1, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_any_split_has_the_same_gradient(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: int, ranks: int, micro_batches: int
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    whole = first_step(corpus, tmp_path / "whole.pt", experts, ranks=1, micro_batches=1)
    split = first_step(corpus, tmp_path / "split.pt", experts, ranks=ranks, micro_batches=micro_batches)
    assert split["targets"] == whole["targets"]
    torch.testing.assert_close(split["cross_entropy"], whole["cross_entropy"])
    assert max(gradient.abs().max() for gradient in whole["gradients"].values()) > 1e-2
    apart = {name: float((split["gradients"][name] - g).abs().max()) for name, g in whole["gradients"].items()}
    assert max(apart.values()) < 1e-6, apart


def test_the_loss_is_the_mean_over_targets(corpus: Path, tmp_path: Path) -> None:
    """What is trained on is what the sums say, computed here a second way: from logits, with torch's own loss."""
    model = build(tiny_model())
    model.to_empty(device="cpu")
    model.init_weights(0)
    data = MM1Data(corpus, model.image_spec, row_tokens=ROW_TOKENS, rows_per_step=8, images_per_row=5, workers=0)
    data.trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    logits = model.decoder.logits(model(batch).hidden_BTD)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
    whole = first_step(corpus, tmp_path / "whole.pt", experts=0, ranks=1, micro_batches=4)
    torch.testing.assert_close(whole["cross_entropy"] / whole["targets"], expected.detach())


def test_sight_gap_is_zero_for_a_blind_model_and_not_for_one_that_sees(corpus: Path) -> None:
    model = build(tiny_model())
    model.to_empty(device="cpu")
    model.init_weights(0)
    data = MM1Data(corpus, model.image_spec, row_tokens=ROW_TOKENS, rows_per_step=8, images_per_row=5, workers=0)
    data.trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.setup("fit")

    def summary() -> dict[str, float]:
        held_out = HeldOutLoss()
        for batch in data.val_dataloader():
            held_out.add(model.eval(), batch)
        return held_out.summary(lambda tensor: tensor, torch.device("cpu"))

    with torch.no_grad():
        for parameter in model.connector.parameters():
            parameter.mul_(40)
    seeing = summary()
    assert set(seeing) == {
        "loss", "loss/captions", "loss/interleaved", "loss/text",
        "sight_gap", "sight_gap/captions", "sight_gap/interleaved",
    }  # fmt: skip
    assert abs(seeing["sight_gap/captions"]) > 1e-4
    with torch.no_grad():
        for parameter in model.connector.parameters():
            parameter.zero_()
    assert summary()["sight_gap"] == pytest.approx(0, abs=1e-7)
