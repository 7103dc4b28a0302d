"""Lightning's loggers named in the YAML get the numbers of ``metrics.jsonl``."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mm1.errors import UserError
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
