"""An MoE made of a dense model says what the dense one said, until noise or training parts its experts."""

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
from mm1.interop.export import export
from mm1.interop.upcycle import upcycle
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import MoE


@torch.inference_mode()
def logits(model: MM1) -> torch.Tensor:
    tokens_BT = torch.tensor([[-1] * model.connector.tokens + [1, 5, 9, 20, 33, 7, 100, 200]])
    pictures = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(1, 3, 64, 64)
    x_BTD = model.embed(tokens_BT, model.encode_images(pictures))
    segments_BT, positions_BT = torch.ones_like(tokens_BT), torch.arange(tokens_BT.shape[1])[None]
    return model.decoder.logits(model.decoder(x_BTD, segments_BT, positions_BT).hidden_BTD)


@pytest.mark.parametrize(("experts", "every", "top_k"), [(8, 2, 2), (4, 1, 1), (3, 3, 3)])
def test_the_first_output_is_the_dense_models(tiny_checkpoint: Path, tmp_path: Path, experts, every, top_k) -> None:
    dense = mm1.load(tiny_checkpoint)
    sparse = mm1.load(upcycle(tiny_checkpoint, tmp_path / "moe", experts=experts, every=every, top_k=top_k))
    ffns = [layer.ffn for layer in sparse.model.decoder.layers]
    assert [isinstance(ffn, MoE) for ffn in ffns] == [(index + 1) % every == 0 for index in range(4)]
    assert {len(ffn.experts.gate_up) for ffn in ffns if isinstance(ffn, MoE)} == {experts}
    assert torch.allclose(logits(sparse.model), logits(dense.model), atol=1e-5)
    assert sparse.tokenizer.proto == dense.tokenizer.proto


@pytest.mark.parametrize(("experts", "top_k", "pieces"), [(4, 2, 2), (3, 1, 4), (8, 2, 8)])
def test_pieces_of_copies_say_what_the_dense_model_said(
    tiny_checkpoint: Path, tmp_path: Path, experts: int, top_k: int, pieces: int
) -> None:
    dense = mm1.load(tiny_checkpoint).model
    path = upcycle(tiny_checkpoint, tmp_path / "moe", experts=experts, top_k=top_k, pieces=pieces)
    sparse = mm1.load(path).model
    moe = sparse.decoder.layers[1].ffn
    assert moe.experts.down.shape == (experts * pieces, 96, 256 // pieces)
    assert moe.router.top_k == top_k * pieces
    assert torch.allclose(logits(sparse), logits(dense), atol=1e-5)
    with torch.no_grad():
        moe.router.weight[0].neg_()  # pieces that are not chosen together are another layer
    assert not torch.allclose(logits(sparse), logits(dense), atol=1e-4)
    gate, _ = moe.experts.gate_up[pieces - 1].chunk(2)
    assert torch.equal(gate, dense.decoder.layers[1].ffn.gate_up.weight[256 - 256 // pieces : 256])


def test_noise_parts_the_experts_by_its_share(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dense = mm1.load(tiny_checkpoint).model
    sparse = mm1.load(upcycle(tiny_checkpoint, tmp_path / "moe", noise=0.1)).model
    assert not torch.allclose(logits(sparse), logits(dense), atol=1e-3)
    weight, copies = dense.decoder.layers[1].ffn.down.weight, sparse.decoder.layers[1].ffn.experts.down
    differences = copies - weight
    assert differences.std().item() == pytest.approx(0.1 * weight.std().item(), rel=0.02)
    assert not torch.allclose(copies[0], copies[1])
    again = mm1.load(upcycle(tiny_checkpoint, tmp_path / "again", noise=0.1)).model
    other = mm1.load(upcycle(tiny_checkpoint, tmp_path / "other", noise=0.1, seed=1)).model
    assert torch.equal(again.decoder.layers[1].ffn.experts.down, copies)
    assert not torch.equal(other.decoder.layers[1].ffn.experts.down, copies)


def test_routers_begin_as_those_of_a_new_moe_and_part_with_the_seed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = upcycle(tiny_checkpoint, tmp_path / "moe", seed=5)
    sparse = mm1.load(path).model
    fresh = mm1.model.build.build(path / "model.yaml", device="cpu")
    fresh.init_weights(5)
    routers = [layer.ffn.router.weight for layer in sparse.decoder.layers if isinstance(layer.ffn, MoE)]
    expected = [layer.ffn.router.weight for layer in fresh.decoder.layers if isinstance(layer.ffn, MoE)]
    assert len(routers) == 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(routers, expected, strict=True))
    assert not torch.equal(routers[0], routers[1])


def test_it_learns(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Gradients reach the router and more than one expert from the first step on."""
    model = mm1.load(upcycle(tiny_checkpoint, tmp_path / "moe")).model.train()
    tokens_BT = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    ones_BT = torch.ones_like(tokens_BT)
    output = model.decoder(model.decoder.embedding(tokens_BT), ones_BT, torch.arange(40).expand(2, 40))
    (output.hidden_BTD.square().mean() + output.router.loss).backward()
    moe = model.decoder.layers[1].ffn
    assert moe.router.weight.grad.abs().max() > 0
    assert (moe.experts.down.grad.flatten(1).abs().amax(1) > 0).sum() > 4


def test_half_precision_and_a_folder_stay_what_they_were(stored_tiny: dict[str, Any], tmp_path: Path) -> None:
    halves = {name: value.bfloat16() for name, value in stored_tiny["state_dict"].items()}
    torch.save(stored_tiny | {"state_dict": halves}, tmp_path / "half.ckpt")
    folder = export(tmp_path / "half.ckpt", tmp_path / "half")
    sparse = mm1.load(upcycle(folder, tmp_path / "moe")).model
    assert {tensor.dtype for tensor in sparse.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(sparse.decoder.layers[1].ffn.experts.down[3], halves["model.decoder.layers.1.ffn.down.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 1}, "experts is 1; expected at least 2"),
        ({"top_k": 9}, "top_k=9 of 8 experts"),
        ({"every": 5}, "moe_every"),
        ({"pieces": 7}, "7 pieces of an inner width of 256; expected a divisor"),
        ({"pieces": 0}, "pieces is 0; expected at least 1"),
        ({"noise": -1.0}, r"noise is -1\.0; expected at least 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tiny_checkpoint: Path, tmp_path: Path, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        upcycle(tiny_checkpoint, tmp_path / "moe", **settings)
    assert not (tmp_path / "moe").exists()


def test_an_moe_is_not_upcycled_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = upcycle(tiny_checkpoint, tmp_path / "moe")
    with pytest.raises(UserError, match="is an MoE already"):
        upcycle(folder, tmp_path / "more")


def test_a_model_that_lacks_a_tensor_is_refused(stored_tiny: dict[str, Any], tmp_path: Path) -> None:
    weights = dict(stored_tiny["state_dict"])
    del weights["model.decoder.norm.weight"]
    torch.save(stored_tiny | {"state_dict": weights}, tmp_path / "cut.ckpt")
    with pytest.raises(UserError, match=r"1 tensors missing, the first: decoder\.norm\.weight"):
        upcycle(tmp_path / "cut.ckpt", tmp_path / "moe")


def test_the_door_takes_it(tiny_checkpoint: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["mm1-convert", "upcycle", str(tiny_checkpoint), str(tmp_path / "moe"), "--experts", "4", "--top-k", "1"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert capsys.readouterr().out == f"written: {tmp_path / 'moe'}\n"
    moe = yaml.safe_load((tmp_path / "moe" / "model.yaml").read_text())["init_args"]["decoder"]["init_args"]
    assert (moe["moe"]["init_args"], moe["moe_every"]) == ({"experts": 4, "top_k": 1}, 2)
