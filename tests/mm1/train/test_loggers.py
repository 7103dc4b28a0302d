"""Loggers named in the YAML get the numbers of ``metrics.jsonl``, TensorBoard where none is."""

from __future__ import annotations

import csv
import importlib.util
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import Callback
from tensorboardX.proto.event_pb2 import Event

from mm1.errors import UserError
from mm1.runs import Run
from tests.conftest import fit, run_config


def logged_by(name: str, folder: Path) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": str(folder)}}


def test_a_logger_gets_the_numbers_of_the_run(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, max_steps=4, logger=logged_by("CSVLogger", tmp_path / "csv")))
    [path] = (tmp_path / "csv").rglob("metrics.csv")
    with path.open() as file:
        lines = [line for line in csv.DictReader(file) if line["train/loss"]]
    expected = [(line["step"], line["loss"], line["lr/decoder"]) for line in run.history("train")]
    found = [(int(line["step"]), float(line["train/loss"]), float(line["train/lr/decoder"])) for line in lines]
    assert found == expected


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="the package is installed")
def test_a_package_that_is_not_installed_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"wandb") as error:
        fit(tmp_path, run_config(corpus, logger=logged_by("WandbLogger", tmp_path)))
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)


def events(path: Path) -> Iterator[Event]:
    """Records of a file: length, its checksum, an event, its checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16


def curves(run: Run) -> dict[tuple[str, int], float]:
    """Points as TensorBoard shows them: what begins anew at a step takes back what was there from that step on."""
    found: dict[tuple[str, int], float] = {}
    for path in sorted((run.folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in events(path):
            if event.HasField("session_log"):
                found = {point: value for point, value in found.items() if point[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found, "a point stands there twice"
                found[value.tag, event.step] = value.simple_value
    return found


def lines(run: Run) -> dict[tuple[str, int], float]:
    found = {}
    for line in run.history():
        numbers = {name: value for name, value in line.items() if isinstance(value, float) and name not in AXES}
        found |= {(f"{line['split']}/{name}", line["step"]): value for name, value in numbers.items()}
    return found


AXES = ("time_s", "positions", "flops")


def test_nothing_said_is_tensorboard_and_one_curve_over_lives(corpus: Path, tmp_path: Path) -> None:
    """Stopped after step 5, it goes on from the checkpoint of step 3: the line of step 4 is of the second life."""
    stop = [{"class_path": f"{__name__}.StopAfterFive"}]
    with pytest.raises(KeyError, match="five"):
        fit(tmp_path / "run", run_config(corpus, callbacks=stop))
    run = fit(tmp_path / "run", run_config(corpus))
    expected = lines(run)
    assert len(list((run.folder / "tensorboard").iterdir())) == 2
    assert {step for _, step in expected} == {2, 4, 6, 8, 10, 12}
    assert curves(run) == {point: pytest.approx(value, rel=1e-6) for point, value in expected.items()}
    fit(tmp_path / "run", run_config(corpus, max_steps=2), "--resume", "never")
    assert {step for _, step in curves(run)} == {2}


class StopAfterFive(Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            raise KeyError("five")


def test_no_logger_is_none(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, max_steps=2, logger=False))
    assert not (run.folder / "tensorboard").exists()


def trackio(**settings: Any) -> dict[str, Any]:
    return {"class_path": "mm1.train.loggers.Trackio", "init_args": settings}


def test_trackio_that_is_not_there_is_one_sentence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"^trainer.logger is Trackio, .* pip install 'mm1\[trackio\]'$"):
        fit(tmp_path, run_config(corpus, logger=trackio()))


def test_trackio_gets_the_numbers_of_the_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two lives one run."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage", reason="trackio is not installed: it wants pillow below 13")
    logger = trackio(project="here", name="mine")
    fit(tmp_path / "run", run_config(corpus, max_steps=4, logger=logger))
    run = Run(tmp_path / "run")
    run.update(finished=False)
    fit(tmp_path / "run", run_config(corpus, max_steps=6, logger=logger))
    points = storage.SQLiteStorage.get_metric_values("here", "mine", "train/loss")
    expected = [(line["step"], line["loss"]) for line in run.history("train")]
    assert [(point["step"], point["value"]) for point in points] == expected
