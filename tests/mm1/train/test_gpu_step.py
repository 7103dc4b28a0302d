"""A training step on a GPU: nobody waits for it, and its fast path learns what the plain one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.conftest import fit, run_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
QUIET = {"log_every_n_steps": 1000, "limit_val_batches": 0}


class NoWaiting(Callback):
    """From the fourth step on, whatever waits for the GPU raises."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps - 1:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(corpus: Path, experts: int, **trainer: Any) -> dict[str, Any]:
    config = run_config(corpus, experts, **{"accelerator": "gpu", **trainer})
    return config | {"save_every_n_steps": 1000, "validate_every_n_steps": 1000}


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_step_never_waits_for_the_gpu(make_corpus, tmp_path, experts, weights):
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    waiting = {"class_path": f"{__name__}.NoWaiting"}
    config = on_gpu(corpus, experts, callbacks=[waiting], **QUIET)
    config["model"]["weights"] = weights
    run = fit(tmp_path / "run", config)
    assert run.history("train")


@pytest.mark.parametrize("experts", [0, 4])
def test_the_fast_path_learns_what_the_plain_one_does(make_corpus, tmp_path, experts):
    """Twenty steps: compiled layers and bfloat16 weights with masters beside fp32 on the GPU and on the CPU."""
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "cpu": ("cpu", {}),
        "plain": ("gpu", {}),
        "fast": ("gpu", {"weights": "bfloat16", "compiled": True}),
    }
    losses = {}
    for way, (accelerator, model) in ways.items():
        trainer = {"accelerator": accelerator, "max_steps": 20, "log_every_n_steps": 1, "limit_val_batches": 0}
        config = on_gpu(corpus, experts, **trainer)
        config["model"] |= model
        losses[way] = [line["loss"] for line in fit(tmp_path / way, config).history("train")]
    assert losses["plain"] == pytest.approx(losses["cpu"], rel=2e-3)
    assert losses["fast"] == pytest.approx(losses["plain"], rel=0.03)


@pytest.mark.parametrize("layout", ["whole", "sharded"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_halted_run_goes_on(make_corpus, tmp_path, weights, layout):
    """Counts of steps are read to the CPU, and verdicts that are added to them are on the GPU."""
    corpus, halt = make_corpus(captions=41, interleaved=30, text=17), "tests.mm1.train.test_masters.Until"
    for step in (3, 6):
        until = [{"class_path": halt, "init_args": {"step": step}}]
        config = on_gpu(corpus, 0, max_steps=6, callbacks=until, log_every_n_steps=1, limit_val_batches=0)
        config["model"]["weights"] = weights
        run = fit(tmp_path / "run", config | {"checkpoints": layout})
    assert [line["step"] for line in run.history("train")] == [1, 2, 3, 4, 5, 6]
