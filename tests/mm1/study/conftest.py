"""Fixtures of the studies' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm1.runs import Run
from tests.mm1.study.made_up import make_run, make_scores


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    """A dense and an MoE run of the same made-up data, scored."""
    runs = make_run(tmp_path / "dense", moe=False), make_run(tmp_path / "moe", moe=True)
    for run, better in zip(runs, (0.0, 3.0), strict=True):
        make_scores(run, "fewshot", tmp_path / "pictures", shots=(0, 4, 8), better=better)
    return runs
