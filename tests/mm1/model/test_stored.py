"""A stored model is read whole or not at all, and the reason is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mm1.errors import UserError
from mm1.model import stored


class Foreign:
    """Code of somebody else in a checkpoint; it must not run."""


def changed(content: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {**content, "mm1": {**content["mm1"], **about}}


def with_weights(content: dict[str, Any], change: Callable[[dict], Any]) -> dict[str, Any]:
    weights = dict(content["state_dict"])
    change(weights)
    return {**content, "state_dict": weights}


NORM = "model.decoder.norm.weight"
FAULTS: list[tuple[Callable[[dict], Any], str]] = [
    (lambda c: changed(c, format=9), "checkpoint format 9; this version reads format 1 to 3: update mm1"),
    (lambda c: changed(c, format=0), "checkpoint format 0; .* with the version that wrote it"),
    (lambda c: changed(c, model="class_path: [", format=1), "configuration that is not YAML"),
    (lambda c: changed(c, model="hello"), "configuration without a class_path"),
    (lambda c: changed(c, model=c["mm1"]["model"].replace("Decoder", "Decodr")), r"odd\.ckpt: .*no attribute 'Decodr'"),
    (lambda c: {**c, "mm1": {"format": 1}}, "does not hold its model's YAML and tokenizer"),
    (lambda c: {**c, "state_dict": []}, "no section named mm1"),
    (lambda c: with_weights(c, lambda w: w.update({NORM: 3})), r"1 tensors missing, the first: decoder\.norm\.weight"),
    (lambda c: {"state_dict": c["state_dict"]}, "no section named mm1"),
    (lambda c: ["a list"], "no section named mm1"),
    (lambda c: {**c, "callbacks": Foreign()}, "not readable as a checkpoint"),
    (lambda c: with_weights(c, lambda w: w.pop(NORM)), r"1 tensors missing, the first: decoder\.norm\.weight"),
    (lambda c: with_weights(c, lambda w: w.update({"model.odd": w[NORM]})), "1 tensors left over, the first: odd"),
    (lambda c: with_weights(c, lambda w: w.update({NORM: w[NORM][:5]})), r"norm\.weight is \(5,\) where .* \(\d+,\)"),
    (lambda c: changed(c, model=c["mm1"]["model"].replace("layers: 4", "layers: 5")), "tensors missing"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_what_does_not_fit_is_told(
    fault: Callable[[dict], Any], message: str, stored_tiny: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save(fault(stored_tiny), path)
    with pytest.raises(UserError, match=message):
        stored.read(path).model()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last\.ckpt does not exist; expected a training checkpoint"):
        stored.read(tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_another_kind_of_file_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="not readable as a checkpoint"):
        stored.read(tmp_path / "photo.ckpt")


def test_a_checkpoint_cut_short_is_told(tiny_checkpoint: Path) -> None:
    tiny_checkpoint.write_bytes(tiny_checkpoint.read_bytes()[:-5000])
    with pytest.raises(UserError, match="not readable as a checkpoint"):
        stored.read(tiny_checkpoint)


def test_a_model_comes_back_as_it_was(tiny_checkpoint: Path, stored_tiny: dict[str, Any]) -> None:
    model = stored.read(tiny_checkpoint).model()
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored_tiny["state_dict"][f"model.{name}"]), name
