"""A tiny random model as it lies on disk, for whatever reads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mm1.data.tokenizer import train
from mm1.model.build import build

TINY = Path(__file__).resolve().parents[2] / "configs" / "model" / "tiny.yaml"
LINES = ["User: what is this?", "Assistant: a red square on the left", "one two three"] * 20


@pytest.fixture(scope="session")
def stored_tiny() -> dict[str, Any]:
    """The content of a checkpoint of a random model; a test that changes it makes its own copy."""
    tokenizer = train(LINES, 310)
    config = TINY.read_text().replace("2048", "310")
    model = build(yaml.safe_load(config), device="cpu")
    model.init_weights(seed=0)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"mm1": {"format": 1, "model": config, "tokenizer": tokenizer}, "state_dict": weights, "loops": {"step": 3}}


@pytest.fixture
def tiny_checkpoint(stored_tiny: dict[str, Any], tmp_path: Path) -> Path:
    """The same as a file."""
    path = tmp_path / "tiny.ckpt"
    torch.save(stored_tiny, path)
    return path
