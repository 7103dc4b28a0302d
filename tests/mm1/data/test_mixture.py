"""Shares asked for are shares trained on, whatever the documents."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.data.mixture import amount, furthest_behind, shares_of
from mm1.errors import UserError


def test_the_drawing_of_the_module() -> None:
    assert furthest_behind([0.45, 0.45, 0.10], [300, 900, 100]) == 0


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 400), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_shares_hold_within_a_document_however_uneven_they_are(weights, lengths, seed) -> None:
    chance = random.Random(seed)
    shares = list(shares_of({str(i): weight for i, weight in enumerate(weights)}).values())
    booked = [0] * len(shares)
    for _ in range(3000):
        source = furthest_behind(shares, booked)
        booked[source] += chance.randint(1, lengths[source])
        furthest = max(abs(b - share * sum(booked)) for b, share in zip(booked, shares, strict=True))
        assert furthest <= max(lengths) * len(shares)


@pytest.mark.parametrize(
    ("unit", "expected"), [("positions", 26), ("text_tokens", 10), ("images", 4), ("documents", 1)]
)
def test_what_a_document_counts_for(unit, expected: int) -> None:
    assert amount(unit, text_tokens=10, images=4, tokens_per_image=4) == expected


def test_weights_that_cannot_be_meant() -> None:
    assert shares_of({"captions": 3, "text": 1, "sft": 0}) == {"captions": 0.75, "text": 0.25}
    with pytest.raises(UserError, match=r"data\.weights\.text is -1"):
        shares_of({"text": -1})
    with pytest.raises(UserError, match="above 0"):
        shares_of({"text": 0})
