"""The decision which experts to shadow, in simulation: never slower than none, and near the best of all choices."""

from __future__ import annotations

import random
from itertools import chain, combinations

import pytest

from mm1.train.shadow import Costs, step_s, worth_shadowing

RANKS, EXPERTS, ROWS = 4, 8, 1000
COSTS = Costs(row_s=1e-6, move_s=0.5e-6, expert_s=150e-6)


def counts(skew: float, seed: int) -> list[list[int]]:
    """Rows of each rank by expert, the more uneven the larger the skew."""
    chance = random.Random(seed)
    weights = [1 / (place + 1) ** skew for place in range(EXPERTS)]
    chance.shuffle(weights)
    drawn = [chance.choices(range(EXPERTS), weights, k=ROWS) for _ in range(RANKS)]
    return [[rank.count(expert) for expert in range(EXPERTS)] for rank in drawn]


def test_the_time_of_a_step_by_hand() -> None:
    """Two ranks, an expert each: the first is asked for 30 + 10 rows, of which 10 come from the other rank."""
    rows = [[30, 2], [10, 5]]
    costs = Costs(row_s=1.0, move_s=10.0, expert_s=100.0)
    assert step_s(rows, frozenset(), costs) == 3 * 40 + 4 * 10 * 10
    assert step_s(rows, frozenset({0}), costs) == 3 * 30 + 4 * 10 * 2 + 2 * 100
    assert worth_shadowing(rows, costs) == {0}


@pytest.mark.parametrize("skew", [0.5, 2.0])
def test_as_many_of_the_most_visited_as_make_the_step_shortest(skew: float) -> None:
    rows = counts(skew, 7)
    loads = [sum(column) for column in zip(*rows, strict=True)]
    order = sorted(range(EXPERTS), key=lambda expert: -loads[expert])
    tried = [frozenset(order[:size]) for size in range(EXPERTS + 1)]
    assert worth_shadowing(rows, COSTS) == min(tried, key=lambda hot: step_s(rows, hot, COSTS))


@pytest.mark.parametrize("seed", range(3))
def test_balanced_experts_stay(seed: int) -> None:
    assert worth_shadowing(counts(0.0, seed), COSTS) == frozenset()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("skew", [0.5, 1.0, 2.0])
def test_skewed_ones_travel_when_that_is_faster(skew: float, seed: int) -> None:
    rows = counts(skew, seed)
    none_s, found_s = step_s(rows, frozenset(), COSTS), step_s(rows, worth_shadowing(rows, COSTS), COSTS)
    subsets = chain.from_iterable(combinations(range(EXPERTS), size) for size in range(EXPERTS + 1))
    best_s = min(step_s(rows, frozenset(subset), COSTS) for subset in subsets)
    assert best_s <= found_s <= none_s
    assert found_s <= 1.15 * best_s
    assert skew < 2.0 or found_s < 0.7 * none_s


def test_a_slow_network_for_weights_keeps_them() -> None:
    rows = counts(2.0, 0)
    assert worth_shadowing(rows, Costs(COSTS.row_s, COSTS.move_s, expert_s=1.0)) == frozenset()
