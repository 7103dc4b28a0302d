"""What a run says about its data, when that stops it, and that a resumed run on other ranks is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.data.shards import ShardSet
from mm1.errors import UserError
from mm1.runs import Run
from tests.conftest import fit, run_config


class StopAt(Callback):
    """End training after a step, as a run does whose time is up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def stopped_at(step: int) -> list[dict[str, Any]]:
    return [{"class_path": f"{__name__}.StopAt", "init_args": {"step": step}}]


@pytest.fixture
def damaged(corpus: Path, tmp_path: Path) -> Path:
    """The corpus with two of its 41 training captions and one to validate on broken."""
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    for split, broken in (("train", (3, 17)), ("val", (1,))):
        shards = ShardSet(copy, "captions", split)
        data = bytearray(shards.paths[0].read_bytes())
        for index in broken:
            data[data.index(shards[index].items[0].data) + 60] ^= 255
        shards.paths[0].write_bytes(data)
    return copy


def listed(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.quarantine.read_text().splitlines()]


def test_training_survives_damaged_documents_and_lists_them(damaged: Path, tmp_path: Path) -> None:
    config = run_config(damaged, max_steps=24, log_every_n_steps=1)
    config["data"]["max_damaged_share"] = 0.1
    whole = fit(tmp_path / "whole", config)
    assert whole.about()["finished"]
    found = [line for line in listed(whole) if line["split"] == "train"]
    assert {(line["source"], line["reason"]) for line in found} == {("captions", "checksum differs")}
    assert {line["where"].rpartition(", sample ")[2] for line in found} == {f"{i} of the stream" for i in (3, 17)}
    epochs = whole.history("train")[-1]["epochs/captions"]
    assert 2 * int(epochs - 1) <= len(found) <= 2 * (int(epochs) + 2)
    assert [line["split"] for line in listed(whole)].count("val") == 6

    parts = {**config, "trainer": {**config["trainer"], "callbacks": stopped_at(13)}}
    fit(tmp_path / "parts", parts)
    run = Run(tmp_path / "parts")
    with run.quarantine.open("a") as lines:  # of a step that was trained after the last checkpoint, before a kill
        lines.write(json.dumps({**found[-1], "step": 14}) + "\n")
    fit(tmp_path / "parts", config)
    assert listed(run) == listed(whole)
    assert [line["loss"] for line in run.history("train")] == [line["loss"] for line in whole.history("train")]


def test_too_many_damaged_documents_stop_training_with_one_sentence(damaged: Path, tmp_path: Path) -> None:
    config = run_config(damaged, max_steps=200)
    told = (
        r"^11 of \d+ documents were damaged, 11 of them captions: checksum differs; expected at most a share of 0\.01 "
        r"\(data\.max_damaged_share\): \S+quarantine\.jsonl lists them, write their shards again$"
    )
    with pytest.raises(UserError, match=told):
        fit(tmp_path / "run", config, "--data.max_damaged_share", "0.01")
    with pytest.raises(UserError, match=r"^1 of \d+ documents were damaged"):
        fit(tmp_path / "strict", config, "--data.max_damaged_share", "0")


def test_how_full_rows_get_is_said_at_the_start(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(tmp_path / "run", run_config(corpus, max_steps=1))
    packing = run.about()["packing"]
    assert packing["images_needed"] > 5
    assert packing["fill_bound"] == pytest.approx(5 / packing["images_needed"])
    assert 0.9 * packing["fill_bound"] < packing["fill"] < 1
    assert "pictures run out before positions do" in caplog.text
    assert "raise data.images_per_row to" in caplog.text
    caplog.clear()
    config = run_config(corpus, max_steps=1)
    config["data"]["weights"] = {"text": 1}
    assert fit(tmp_path / "text", config).about()["packing"]["fill_bound"] == 1
    assert "pictures run out" not in caplog.text


def test_training_ends_with_the_source_that_may_not_be_repeated(corpus: Path, tmp_path: Path, caplog) -> None:
    config = run_config(corpus, max_steps=60, log_every_n_steps=1)
    config["data"] |= {"max_epochs": {"text": 1}, "when_exhausted": "stop"}
    run = fit(tmp_path / "run", config)
    steps = run.history("train")[-1]["step"]
    assert 3 < steps < 60
    assert f"training ends after step {steps} of 60: 'text' was read through as often as data.max_epochs" in caplog.text
    assert torch.load(run.last, weights_only=True)["global_step"] == steps
    assert run.history("train")[-1]["epochs/text"] == 1
    with pytest.raises(UserError, match=r"'text' was read through as often as data\.max_epochs allows; raise it"):
        fit(tmp_path / "run", config)
    assert fit(tmp_path / "run", config, "--data.when_exhausted", "drop").about()["finished"]
    assert run.history("train")[-1]["epochs/text"] == 1


def test_weights_may_be_a_schedule_in_the_yaml_and_on_the_command_line(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, max_steps=4, log_every_n_steps=1)
    config["data"]["weights"] = {"captions": {0: 45, 2: 0}, "text": 10}
    run = fit(tmp_path / "yaml", config)
    assert run.about()["mix_target"] == pytest.approx(
        {"captions": 100 * (45 / 55 + 22.5 / 32.5) / 4, "text": 62.2}, abs=0.1
    )
    shares = [line["mix/positions/captions"] for line in run.history("train")]
    assert shares[0] > 0.5
    assert shares[3] * 4 < shares[1] * 2 * 1.4  # next to none after the second step
    config["data"].pop("weights")
    flag = "{captions: {0: 45, 2: 0}, text: 10}"
    same = fit(tmp_path / "flag", config, "--data.weights", flag)
    assert [line["loss"] for line in same.history("train")] == [line["loss"] for line in run.history("train")]


def test_rows_of_one_source_each_are_logged(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, max_steps=10), "--data.unit", "rows")
    last = run.history("train")[-1]
    rows = {source: 40 * last[f"mix/rows/{source}"] for source in ("captions", "interleaved", "text")}
    assert rows == pytest.approx({"captions": 18, "interleaved": 18, "text": 4}, abs=1)
    assert all(count == pytest.approx(round(count)) for count in rows.values())


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # weights that a fork hands back
@pytest.mark.parametrize("streams", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_losses_on_one_two_and_four_ranks(corpus: Path, tmp_path: Path, monkeypatch, streams: int) -> None:
    """One run in three parts, of 1, 2 and 4 ranks and 0, 1 and 2 workers, beside the undisturbed one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    config = run_config(corpus, max_steps=6, log_every_n_steps=1)
    config["data"]["streams"] = streams
    whole = fit(tmp_path / "whole", config)
    for step, ranks, workers in ((2, 1, 0), (4, 2, 1), (6, 4, 2)):
        split = {"devices": ranks, "strategy": "auto" if ranks == 1 else "ddp_fork", "callbacks": stopped_at(step)}
        config["trainer"] |= split
        config["data"]["workers"] = workers
        run = fit(tmp_path / "parts", config)
        state = torch.load(run.last, weights_only=True)["MM1Data"]["state"]
        assert state["step"] == step
        assert [plan["stream"] for plan in state["plans"]] == list(range(streams))
    assert run.about()["finished"]
    losses, expected = ([line["loss"] for line in of.history("train")] for of in (run, whole))
    assert losses == pytest.approx(expected, rel=1e-5)
    for line, other in zip(run.history("train"), whole.history("train"), strict=True):
        counted = [{k: v for k, v in of.items() if k.startswith(("mix/", "images", "padding"))} for of in (line, other)]
        assert counted[0] == pytest.approx(counted[1])
