"""Twenty losses, dense and with experts: a refactor leaves them as they are, a change writes them anew and says why.

``MM1_GOLDEN=write python -m pytest tests/golden`` writes them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import fit, run_config

LOSSES = Path(__file__).with_name("losses.json")


@pytest.mark.parametrize(("name", "experts"), [("dense", 0), ("moe", 4)])
def test_twenty_losses(make_corpus, tmp_path: Path, name: str, experts: int) -> None:
    corpus = make_corpus(captions=41, interleaved=30, text=17, sft=24)
    config = run_config(corpus, experts, max_steps=20, log_every_n_steps=1) | {"validate_every_n_steps": 20}
    run = fit(tmp_path / "run", config)
    losses = {"train": [line["loss"] for line in run.history("train")], "val": run.history("val")[-1]["loss"]}
    if os.environ.get("MM1_GOLDEN") == "write":
        known = json.loads(LOSSES.read_text()) if LOSSES.exists() else {}
        LOSSES.write_text(json.dumps(known | {name: losses}, indent=1) + "\n")
    golden = json.loads(LOSSES.read_text())[name]
    assert losses["train"] == pytest.approx(golden["train"], rel=1e-5)
    assert losses["val"] == pytest.approx(golden["val"], rel=1e-5)
