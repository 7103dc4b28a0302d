"""Every router of the ablations, its experts shared by two ranks, has the gradients of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mm1.batch import Batch
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.train.parallel import meshes, shard, whole
from tests.mm1.train.test_parallel import gathered, loss_of, on_ranks, part_of, rows_of_text

ROUTERS = sorted((Path(__file__).resolve().parents[3] / "configs" / "ablations").glob("router-*.yaml"))


def model_of(path: Path, on: Any = None) -> MM1:
    tree = yaml.safe_load(path.read_text())
    decoder = tree["init_args"]["decoder"]["init_args"]
    decoder |= {"width": 24, "layers": 2, "ffn_width": 48, "moe_every": 2}
    if decoder["moe"]["init_args"].get("experts", 0) % 2:
        decoder["moe"]["init_args"]["experts"] += 1
    model = build(tree)
    if on is not None:
        shard(model, on)
    model.to_empty(device="cpu")
    model.init_weights(0, whole)
    return model.eval()  # routers that draw lots draw none


def rows() -> Batch:
    """Of the sources that the router by task knows."""
    return replace(rows_of_text(4), sources=("captions", "interleaved", "text"))


def gradients(model: MM1, batch: Batch, share: float) -> dict[str, torch.Tensor]:
    loss_of(model, batch, share).backward()
    return gathered({name: p.grad for name, p in model.named_parameters()})


def compare(rank: int, path: Path, found: Path) -> None:
    expected = torch.load(found)
    ours = gradients(model_of(path, meshes("cpu", 2, experts=2)), part_of(rows(), rank, 2), 0.5)
    for name, gradient in expected.items():
        if name.startswith("decoder"):
            assert (ours[name] - gradient).abs().max() < 1e-5 * max(0.1, gradient.abs().max()), name


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTERS, ids=lambda path: path.stem)
def test_gradients_are_those_of_one_process(path: Path, tmp_path: Path) -> None:
    torch.save(gradients(model_of(path), rows(), 1.0), tmp_path / "one.pt")
    on_ranks(2, compare, path, tmp_path / "one.pt")
