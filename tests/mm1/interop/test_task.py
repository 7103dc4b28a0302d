"""One task cut out of a model that routes by task says what the whole one says of that task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mm1
from mm1.errors import UserError
from mm1.interop.__main__ import main
from mm1.interop.task import cut_task
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.model.moe.routing import Places

TASKS = ["captions", "interleaved", "text"]


def checkpoint(stored: dict[str, Any], path: Path, router: bool = True, every: int = 2, **options: Any) -> Path:
    """A random model of four layers that routes by task."""
    tree = yaml.safe_load(stored["mm1"]["model"])
    by_task = {"class_path": "mm1.model.moe.routers.ByTask", "init_args": {"tasks": TASKS}}
    init_args = {"experts": 6, "top_k": 2, **options} | ({"router": by_task} if router else {})
    tree["init_args"]["decoder"]["init_args"] |= {
        "moe": {"class_path": "mm1.model.moe.layer.MoE", "init_args": init_args},
        "moe_every": every,
    }
    model = build(tree, device="cpu")
    model.init_weights(seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.mul_(20)  # so that tasks are of different minds, and shares uneven
            elif name.endswith("down"):
                parameter.mul_(5)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save(stored | {"mm1": stored["mm1"] | {"model": yaml.safe_dump(tree)}, "state_dict": weights}, path)
    return path


@torch.inference_mode()
def logits(model: MM1, task: int | None) -> torch.Tensor:
    tokens_BT = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    yes_BT, segments_BT = torch.ones_like(tokens_BT, dtype=torch.bool), torch.ones_like(tokens_BT)
    places = None if task is None else Places(yes_BT, ~yes_BT, torch.full_like(tokens_BT, task), len(TASKS))
    positions_BT = torch.arange(20).expand(2, 20)
    output = model.decoder(model.decoder.embedding(tokens_BT), segments_BT, positions_BT, places=places)
    return model.decoder.logits(output.hidden_BTD)


@pytest.mark.parametrize("options", [{}, {"every": 1, "expert_width": 80}, {"shared_width": 40, "top_k": 3}])
def test_the_task_model_is_dense_and_says_the_same(
    stored_tiny: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    path = checkpoint(stored_tiny, tmp_path / "whole.ckpt", **options)
    whole = mm1.load(path).model
    said = [logits(whole, task) for task in range(3)]
    assert (said[0] - said[2]).abs().max() > 1e-3
    for index, task in enumerate(TASKS):
        cut = mm1.load(cut_task(path, task=task, out=tmp_path / task))
        assert not [module for module in cut.model.modules() if hasattr(module, "router")]
        assert torch.allclose(logits(cut.model, None), said[index], atol=1e-5)
    assert cut.tokenizer.proto == stored_tiny["mm1"]["tokenizer"]
    size = sum(parameter.numel() for parameter in whole.decoder.parameters())
    assert sum(parameter.numel() for parameter in cut.model.decoder.parameters()) < size


def test_what_cannot_be_cut_is_refused(stored_tiny: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint(stored_tiny, tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match="knows no task sft; expected one of captions, interleaved, text"):
        cut_task(path, task="sft", out=tmp_path / "out")
    by_token = checkpoint(stored_tiny, tmp_path / "token.ckpt", router=False)
    with pytest.raises(UserError, match="does not route by task"):
        cut_task(by_token, task="text", out=tmp_path / "out")
    with pytest.raises(UserError, match="is dense already"):
        cut_task(tiny_checkpoint, task="text", out=tmp_path / "out")
    gated = checkpoint(stored_tiny, tmp_path / "gated.ckpt", shared_width=8, shared_gate=True)
    with pytest.raises(UserError, match="a shared_gate or a capacity in evaluation, which no dense layer equals"):
        cut_task(gated, task="text", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_door_takes_it(stored_tiny: dict[str, Any], tmp_path: Path, monkeypatch, capsys) -> None:
    path = checkpoint(stored_tiny, tmp_path / "whole.ckpt")
    words = ["mm1-convert", "task", str(path), "--task", "text", "--out", str(tmp_path / "cut")]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert capsys.readouterr().out == f"written: {tmp_path / 'cut'}\n"
    assert logits(mm1.load(tmp_path / "cut").model, None).isfinite().all()
