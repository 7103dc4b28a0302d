"""What a run writes down is true, and what goes wrong stops it with a reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from mm1.batch import IGNORE, Batch
from mm1.data.tokenizer import Tokenizer
from mm1.model.mm1 import MM1
from mm1.train.bad_steps import BadSteps
from mm1.train.callbacks import WatchSight, _span
from mm1.train.metrics import _memory
from tests.conftest import ROW_TOKENS, fit, run_config


class Vocabulary:
    """A benchmark whose score rises and falls again: it is a function of the step."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = list(scores)

    def __call__(self, model: MM1, tokenizer: Tokenizer) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"toy": self.scores.pop(0), "vocabulary": float(tokenizer.vocabulary)}


def named(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": init_args}


def test_benchmarks_on_the_way_choose_the_best_checkpoint(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, accumulate_grad_batches=2)
    config["trainer"]["callbacks"] = [
        named(
            "mm1.train.callbacks.Evaluate",
            evaluator=named(f"{__name__}.Vocabulary", scores=[1.0, 3.0, 2.0]),
            every_n_steps=4,
        ),
        named("mm1.train.checkpoints.KeepBest", monitor="eval/toy"),
    ]
    run = fit(tmp_path / "run", config)
    assert [(line["step"], line["eval/toy"]) for line in run.history("eval")] == [(4, 1.0), (8, 3.0), (12, 2.0)]
    assert torch.load(run.best, weights_only=True)["global_step"] == 8
    assert torch.load(run.last, weights_only=True)["global_step"] == 12


def test_a_monitor_that_is_never_logged(corpus: Path, tmp_path: Path, caplog) -> None:
    config = run_config(corpus, max_steps=4)
    config["trainer"]["callbacks"] = [named("mm1.train.checkpoints.KeepBest", monitor="eval/tyo")]
    run = fit(tmp_path / "run", config)
    assert "'eval/tyo' was never logged, only val/loss" in caplog.text
    assert run.about()["finished"]
    assert not run.best.exists()


def test_metrics_say_what_happened(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, experts=4, accumulate_grad_batches=2)
    config["model"]["optimizer"]["parts"] = {"vision": {"lr_scale": 0.5}}
    run = fit(tmp_path / "run", config)
    train, val, experts = (run.history(split) for split in ("train", "val", "experts"))
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in val] == [4, 8, 12]
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    assert val[-1]["loss"] < val[0]["loss"]
    assert {"loss/captions", "loss/interleaved", "loss/text", "sight_gap", "sight_gap/captions"} <= val[0].keys()
    for line in train:
        assert line["lr/vision"] == pytest.approx(line["lr/decoder"] / 2)
        for count in ("documents", "text", "image", "positions"):
            assert sum(
                line[f"mix/{count}/{source}"] for source in ("captions", "interleaved", "text")
            ) == pytest.approx(1)
        assert line["mix/image/text"] == 0
        assert 0 <= line["padding"] < 0.5
        assert 0 < line["images_per_row"] <= 5
        assert line["balance"] == pytest.approx(1, abs=0.3)
    assert train[1]["lr/decoder"] == pytest.approx(3e-3)  # the rate of the step itself, the fourth of four to warm up
    cumulative = [(line["positions"], line["flops"], line["time_s"]) for line in train]
    assert cumulative == sorted(cumulative)
    assert train[-1]["positions"] <= 12 * 4 * ROW_TOKENS
    for line in experts:
        assert line["layers"] == [1]
        assert [len(load) for load in line["load"]] == [4]
        assert sum(line["load"][0]) == pytest.approx(1, abs=1e-5)
    about = run.about()
    assert about["finished"]
    assert sum(about["flops_parts"].values()) == pytest.approx(1)
    assert about["mix_target"] == {"captions": 45, "interleaved": 45, "text": 10}
    assert about["parameters"]["total"] > about["parameters"]["active"] > about["parameters"]["dense_twin"]
    assert yaml.safe_load(run.config.read_text())["model"]["optimizer"]["init_args"]["lr"] == 3e-3


def test_blindness_is_warned_of(corpus: Path, tmp_path: Path, caplog) -> None:
    fit(tmp_path / "run", run_config(corpus, max_steps=4))
    assert "the model ignores what it sees so far" in caplog.text


@pytest.mark.parametrize(("seconds", "told"), [(7.9, "7 s"), (61, "1 min 01 s"), (7265, "2 h 01 min")])
def test_time_left(seconds: float, told: str) -> None:
    assert _span(seconds) == told


def test_a_check_of_validation_before_training_is_no_line(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, max_steps=2, num_sanity_val_steps=1))
    assert [line["step"] for line in run.history()] == [2]


def test_a_step_of_which_nothing_could_be_read_has_a_line(corpus: Path, tmp_path: Path) -> None:
    """As where a step is a row and its one document is damaged: no targets, no positions, no FLOPs."""
    config = run_config(corpus, experts=4, max_steps=3, log_every_n_steps=1)
    config["trainer"]["callbacks"] = [named(f"{__name__}.AllDamaged")]
    run = fit(tmp_path / "run", config)
    assert [line["loss"] for line in run.history("train")] == [0.0] * 3
    assert [line["balance"] for line in run.history("train")] == [0.0] * 3
    assert run.about()["flops_parts"] == {"vision": 0.0, "connector": 0.0, "decoder": 0.0}


class AllDamaged(Callback):
    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        batch.window_targets = batch.window_tokens = 0
        batch.targets_BT.fill_(IGNORE)
        batch.images_ICHW = batch.images_ICHW[:0]
        for tensor in (batch.tokens_BT, batch.segments_BT, batch.positions_BT):
            tensor.zero_()


def test_a_gpu_says_what_it_has_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    assert _memory(torch.device("cuda", 1)) == {"peak_gib": 1.5}
    assert _memory(torch.device("cpu")) == {}


@pytest.mark.parametrize("first", [True, False])
def test_what_all_ranks_see_one_tells(first: bool, caplog) -> None:
    seen: Any = SimpleNamespace(is_global_zero=first, callback_metrics={"val/sight_gap": 0.0}, global_step=3)
    WatchSight().on_validation_end(seen, seen)
    judge: Any = SimpleNamespace(is_global_zero=first, default_root_dir="runs/mine")
    BadSteps("skip")._stop_or_tell(judge, 3, "loss is nan")
    assert len(caplog.records) == 2 * first
