"""How tokens are chosen: as transformers would, and what is drawn belongs to the seed and the prompt alone."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mm1.errors import UserError
from mm1.infer.decoding import Decoding


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (0.5, 7, 0.6), (2.0, 0, 1e-6)]
)
def test_what_may_be_drawn_has_transformers_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    scores_BV = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected_BV = TemperatureLogitsWarper(temperature)(None, scores_BV)
    if top_k:
        expected_BV = TopKLogitsWarper(top_k)(None, expected_BV)
    if top_p < 1:
        expected_BV = TopPLogitsWarper(top_p)(None, expected_BV)
    sorted_BV, order_BV = Decoding(temperature=temperature, top_k=top_k, top_p=top_p).shares(scores_BV)
    found_BV = torch.zeros_like(scores_BV).scatter(1, order_BV, sorted_BV)
    found_BV = found_BV / found_BV.sum(1, keepdim=True)
    assert torch.allclose(found_BV, expected_BV.softmax(-1), atol=1e-6)


def test_what_is_drawn_is_drawn_as_often_as_it_is_likely() -> None:
    decoding = Decoding(temperature=1.0, top_p=0.9)
    scores_V = torch.tensor([0.5, 0.04, 0.3, 0.16]).log()
    chance_B = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    drawn_B, margin_B = decoding.choose(scores_V.expand(len(chance_B), -1), chance_B)
    shares = torch.bincount(drawn_B, minlength=4) / len(drawn_B)
    assert torch.allclose(shares, torch.tensor([0.5, 0.0, 0.3, 0.16]) / 0.96, atol=0.01)
    assert torch.allclose(margin_B, torch.tensor(0.5 / 0.3).log())
    ends = decoding.choose(scores_V.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))[0]
    assert ends.tolist() == [0, 3], "the largest number that is drawn takes the last that may be drawn"


def test_chances_belong_to_seed_and_name() -> None:
    decoding = Decoding(temperature=1.0, seed=1)
    assert torch.equal(decoding.chances("a", 20)[:5], decoding.chances("a", 5))
    assert len({float(Decoding(seed=s).chances(n, 1)) for s in range(3) for n in "abc"}) == 9
    many = decoding.chances("a", 10000)
    assert 0 <= many.min() < many.max() < 1
    assert abs(float(many.mean()) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(beams=0), "beams is 0; expected"),
        (Decoding(temperature=-0.1), "temperature is -0.1; expected"),
        (Decoding(top_k=-1), "top_k is -1; expected"),
        (Decoding(temperature=1, top_p=1.1), "top_p is 1.1; expected more than 0 and at most 1"),
        (Decoding(beams=2, temperature=0.5), "captions.beams is 2 and captions.temperature 0.5; expected one of them"),
    ],
)
def test_what_cannot_be_is_refused(decoding: Decoding, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoding.check("captions." if "captions" in message else "")
