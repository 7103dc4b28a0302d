"""Adapters: they alone learn and are saved, killed runs go on, and whoever reads a checkpoint gets the whole model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mm1.errors import UserError
from mm1.interop.export import export
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.model.stored import read
from mm1.runs import Run
from mm1.train.lora import LoRA
from tests.conftest import fit, run_config, tiny_model
from tests.end_to_end.test_resume import assert_same, killed


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tmp_path_factory.mktemp("base"), run_config(corpus, experts=4, max_steps=8))


def tuning(corpus: Path, base: Run, **trainer: int) -> dict:
    config = run_config(corpus, experts=4, **{"max_steps": 14, "log_every_n_steps": 1, **trainer})
    config["model"]["optimizer"]["lr"] = 3e-2
    config["model"]["lora"] = {"rank": 4, "alpha": 8, "also": ["connector.readout.*"]}
    return config | {"init_from": str(base.last)}


def test_adapters_alone_are_trained_and_saved_and_reading_adds_them(corpus: Path, base: Run, tmp_path: Path) -> None:
    config = tuning(corpus, base)
    whole = fit(tmp_path / "whole", config)
    losses = [line["loss"] for line in whole.history("train")]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.05
    saved = torch.load(whole.last, weights_only=True)
    trained = [name for name in saved["state_dict"] if "lora_" in name]
    layers = 2 * 4 + 2  # four matrices of attention in each layer, and the dense layer's two; experts are stacked
    assert len(trained) == 2 * layers
    was, now = read(base.last).weights, read(whole.last).weights
    kept, every = (sum(tensor.numel() for tensor in some.values()) for some in (saved["state_dict"], was))
    assert kept < 0.2 * every
    assert was.keys() == now.keys()
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    assert {name for name in changed if name.startswith("decoder")} == {
        name.removeprefix("model.").replace(".lora_A.default", "") for name in trained if "lora_A" in name
    }
    assert {name for name in changed if not name.startswith("decoder")} == {
        name for name in was if name.startswith("connector.readout.")
    }
    place = "decoder.layers.0.attention.q"
    a, b = (saved["state_dict"][f"model.{place}.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(now[f"{place}.weight"], was[f"{place}.weight"] + 8 / 4 * b @ a)
    folder = read(export(whole.last, tmp_path / "folder")).weights
    assert all(torch.equal(folder[name], tensor) for name, tensor in now.items())

    run = killed(tmp_path / "killed", config, at_step=5)
    with pytest.raises(UserError, match=r"has adapters .*'alpha': 8.*this run .*'alpha': 16.*restore model\.lora"):
        fit(run.folder, config, "--model.lora.alpha", "16")
    assert_same(fit(run.folder, config), whole)


def test_the_base_has_to_be_there_and_the_same(corpus: Path, base: Run, tmp_path: Path) -> None:
    moved = tmp_path / "base.ckpt"
    moved.write_bytes(base.last.read_bytes())
    run = fit(tmp_path / "run", tuning(corpus, base, max_steps=2) | {"init_from": str(moved)})
    other = torch.load(moved, weights_only=True)
    other["state_dict"]["model.decoder.norm.weight"] += 1
    torch.save(other, moved)
    with pytest.raises(UserError, match=r"holds adapters of .*base\.ckpt, whose weights are others now"):
        read(run.last)
    moved.unlink()
    with pytest.raises(UserError, match=r"holds adapters of .*base\.ckpt, which is not there"):
        read(run.last)
    alone = tuning(corpus, base)
    del alone["init_from"]
    with pytest.raises(UserError, match=r"model\.lora adapts a trained model; expected --init_from"):
        fit(tmp_path / "alone", alone)


@pytest.fixture
def model() -> MM1:
    model = build(tiny_model(), device="cpu")
    model.init_weights(0)
    return model


def test_at_first_nothing_changes_and_numbers_of_others_are_not_drawn(model: MM1) -> None:
    tokens_BT = torch.arange(8)[None]
    before = model.decoder(model.decoder.embedding(tokens_BT), 0 * tokens_BT + 1, tokens_BT).hidden_BTD
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    LoRA(rank=2).adapt(model, seed=0)
    assert torch.equal(torch.rand(1), expected)
    after = model.decoder(model.decoder.embedding(tokens_BT), 0 * tokens_BT + 1, tokens_BT).hidden_BTD
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rank": 0}, r"model\.lora\.rank is 0; expected at least 1"),
        ({"targets": ["decoder.leyers.*"]}, r"model\.lora\.targets has 'decoder\.leyers\.\*', which matches nothing"),
        ({"also": ["conector.*"]}, r"model\.lora\.also has 'conector\.\*', which matches nothing"),
    ],
)
def test_adapters_that_cannot_be(model: MM1, wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        LoRA(**wrong).adapt(model, seed=0)


def test_without_peft_one_sentence(model: MM1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft, which is not there; pip install 'mm1\[lora\]'"):
        LoRA().adapt(model, seed=0)
