"""All that can be set: ``mm1-train fit --print_config`` of a recipe, with every default that it leaves alone.

``MM1_GOLDEN=write python -m pytest tests/golden`` writes it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from mm1.train.__main__ import Door

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "train" / "pretrain_3b_moe.yaml"
GOLDEN = Path(__file__).with_name("print_config.yaml")


def test_print_config_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Door(["fit", "--config", str(RECIPE), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    ours = {key: value for key, value in printed.items() if key != "trainer"}  # the trainer's are Lightning's
    if os.environ.get("MM1_GOLDEN") == "write":
        GOLDEN.write_text(yaml.safe_dump(ours, sort_keys=False))
    assert ours == yaml.safe_load(GOLDEN.read_text())
