"""Shares asked for are shares trained on, whatever the documents."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.data.mixture import Account, amount, check_weights, shares_of, weight_at
from mm1.errors import UserError


def test_the_drawing_of_the_module() -> None:
    account = Account([120, 0, -120])
    account.share([0.45, 0.45, 0.10])
    account.book(1, 900)
    assert account.owed == pytest.approx([525, -495, -30])
    assert account.ranked(100) == [0, 2]


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 400), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_shares_hold_within_a_document_however_uneven_they_are(weights, lengths, seed) -> None:
    chance = random.Random(seed)
    shares = shares_of(weights)
    account, booked = Account([0.0] * len(shares)), [0] * len(shares)
    account.share(shares)
    for _ in range(3000):
        source = account.ranked(0)[0]
        counted = chance.randint(1, lengths[source])
        account.book(source, counted)
        booked[source] += counted
        furthest = max(abs(b - share * sum(booked)) for b, share in zip(booked, shares, strict=True))
        assert furthest <= max(lengths) * len(shares)
    assert sum(account.owed) == pytest.approx(0, abs=1e-6)


def test_what_was_owed_stays_owed_when_shares_change_and_goes_to_the_others_when_a_source_ends() -> None:
    account = Account([0.0, 0.0, 0.0])
    account.share([0.5, 0.25, 0.25])
    account.book(1, 100)
    assert account.owed == [50, -75, 25]
    account.share([0.25, 0.5, 0.25])
    assert account.owed == [50, -75, 25]
    account.share([0, 0.5, 0.5])
    assert account.owed == [0, -50, 50]
    assert account.ranked(100) == [2, 1]
    assert account.ranked(49) == [2]


@pytest.mark.parametrize(
    ("unit", "expected"), [("positions", 26), ("text_tokens", 10), ("images", 4), ("documents", 1), ("rows", 0)]
)
def test_what_a_document_counts_for(unit, expected: int) -> None:
    assert amount(unit, text_tokens=10, images=4, tokens_per_image=4) == expected


def test_a_weight_may_follow_a_schedule() -> None:
    schedule = {100: 40, 200: 20, 300: 0}
    assert [weight_at(schedule, step) for step in (0, 100, 150, 200, 275, 300, 999)] == [40, 40, 30, 20, 5, 0, 0]
    assert weight_at(7.5, 123) == 7.5


def test_weights_that_cannot_be_meant() -> None:
    check_weights({"captions": 3, "text": {0: 1, 10: 0}, "sft": 0})
    for weights, told in (
        ({"text": -1}, r"data\.weights\.text is -1"),
        ({"text": {0: 1, 5: float("nan")}}, r"data\.weights\.text is \{0: 1, 5: nan\}"),
        ({"text": {-1: 3}}, r"expected a number of at least 0, or such numbers by the step"),
        ({"text": 0}, "above 0 at step 0"),
        ({"text": {0: 1, 10: 0}, "sft": 0}, "above 0 at step 10"),
    ):
        with pytest.raises(UserError, match=told):
            check_weights(weights)
