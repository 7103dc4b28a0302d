"""Every place once, well mixed, and never a list of all of them."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1.data.order import Order


@given(n=st.integers(0, 700), key=st.text(max_size=5))
def test_a_permutation_for_every_number_and_key(n: int, key: str) -> None:
    order = Order(n, key)
    assert sorted(order[place] for place in range(n)) == list(range(n))
    with pytest.raises(IndexError):
        order[n]


@pytest.mark.parametrize("n", [1000, 4096, 10_007])
def test_it_is_well_mixed(n: int) -> None:
    """As far from the identity and from itself under another key as a random permutation is."""
    orders = [np.array([Order(n, key)[place] for place in range(n)]) for key in "ab"]
    places = np.arange(n)
    for one, other in ((orders[0], places), (orders[1], places), (orders[0], orders[1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(n)
        assert (one == other).sum() < 10  # a random one agrees in one place
    steps = Counter(int(b - a) % n for a, b in pairwise(orders[0]))
    assert max(steps.values()) < 9  # neighbours do not stay at one distance
    tenths, _, _ = np.histogram2d(places, orders[0], bins=10)
    assert ((tenths - n / 100) ** 2 / (n / 100)).sum() < 81 + 5 * math.sqrt(2 * 81)  # chi square of the cells


def test_small_ones_come_in_every_order() -> None:
    found = Counter(tuple(Order(4, f"{key}")[place] for place in range(4)) for key in range(4800))
    assert len(found) == 24
    assert max(found.values()) < 2 * min(found.values())


def test_a_place_among_a_billion_costs_what_one_among_a_hundred_does() -> None:
    tracemalloc.start()
    order = Order(10**9, "0/captions/0")
    taken = [order[place] for place in range(0, 10**9, 10**6 - 7)]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(set(taken)) == len(taken)
    start_s = time.perf_counter()
    for place in range(10**9 - 1000, 10**9):
        order[place]
    assert time.perf_counter() - start_s < 0.1  # 100 microseconds each, ten times what it takes
