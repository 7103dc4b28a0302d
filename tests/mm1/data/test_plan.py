"""The rows of every batch: shares kept, rows full, every document once, and a billion read cost nothing to resume."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.batch import ImageSpec
from mm1.data.forecast import Lengths, forecast
from mm1.data.pack import Piece
from mm1.data.plan import Plan, merged, trial
from mm1.data.recipe import Recipe

TOKENS = 144
CHANCE = np.random.default_rng(0)


class Sizes:
    """What planning knows of shards: two numbers a document."""

    def __init__(self, text_tokens: np.ndarray, images: np.ndarray | int) -> None:
        self.text_tokens = np.maximum(3, text_tokens).astype(np.int32)
        self.images = np.broadcast_to(np.asarray(images, np.int32), self.text_tokens.shape)

    def __len__(self) -> int:
        return len(self.text_tokens)

    def sizes(self, index: int) -> tuple[int, int]:
        return int(self.text_tokens[index]), int(self.images[index])


def lengths(median: float, spread: float, most: int, count: int = 20_000) -> np.ndarray:
    """Log-normal lengths, as those of captions and web pages are."""
    return np.minimum(CHANCE.lognormal(math.log(median), spread, count), most)


def pages(mean_images: float, median: float, most_images: int = 16) -> Sizes:
    """Documents of so many pictures on average, at least one, in text of such a median length."""
    images = np.minimum(CHANCE.geometric(1 / mean_images, 20_000), most_images)
    return Sizes(np.minimum(lengths(median, 0.8, 4096), 4096 - TOKENS * images), images)


CAPTIONS, SHORT_TEXT = Sizes(lengths(22, 0.45, 200), 1), Sizes(lengths(400, 0.9, 4096), 0)
OBELICS, MMC4 = pages(2.0, 400), pages(5.7, 300)  # about 2 and 6 pictures a page, as the papers tell
MIXES: dict[str, dict[str, tuple[float, Sizes]]] = {
    "captions alone": {"captions": (1, CAPTIONS)},
    "few pictures a page": {"captions": (45, CAPTIONS), "interleaved": (45, OBELICS), "text": (10, SHORT_TEXT)},
    "many pictures a page": {"captions": (45, CAPTIONS), "interleaved": (45, MMC4), "text": (10, SHORT_TEXT)},
    "much text": {"captions": (30, CAPTIONS), "interleaved": (30, OBELICS), "text": (40, SHORT_TEXT)},
    "captions and text": {"captions": (60, CAPTIONS), "text": (40, SHORT_TEXT)},
}


def recipe(mix: dict[str, tuple[float, Any]], **settings: Any) -> tuple[Recipe, list[Any]]:
    """A recipe of full size and what it plans from."""
    about = {"corpus": Path("nowhere"), "image_spec": ImageSpec(size_px=8, tokens=TOKENS), "row_tokens": 4096}
    weights = {name: weight for name, (weight, _) in mix.items()}
    shards = [shards for _, shards in mix.values()]
    return Recipe(**{**about, "rows_per_step": 32, "weights": weights, **settings}), shards


def rows_of(plan: Plan, steps: int) -> list[list[Piece]]:
    return [row for _ in range(steps) for _, row in sorted(plan.next_step().items())]


def counted(rows: list[list[Piece]], unit: str, number: int) -> np.ndarray:
    """Amounts of every source in rows, in a unit."""
    amounts = np.zeros(number)
    for row in rows:
        for piece in row:
            text = piece.positions - piece.images * TOKENS
            amounts[piece.source] += {
                "positions": piece.positions,
                "text_tokens": text,
                "images": piece.images,
                "documents": 1,
                "rows": 1 / len(row),
            }[unit]
    return amounts


@pytest.mark.parametrize("streams", [1, 8, 32])
@pytest.mark.parametrize("mix", MIXES)
def test_rows_are_as_full_as_pictures_allow_and_the_mix_is_kept(mix: str, streams: int) -> None:
    """The bar: 97 % of min(1, P / pictures that the mix needs in L positions), shares within half a point."""
    of, shards = recipe(MIXES[mix], streams=streams)
    outlook = forecast(of, of.shares(), [Lengths.of(one, of) for one in shards])
    rows = rows_of(Plan(of, shards), 1024 // 32)
    filled = sum(piece.positions for row in rows for piece in row) / (4096 * len(rows))
    assert filled >= 0.97 * outlook.fill
    assert max(sum(piece.images for piece in row) for row in rows) <= 16
    assert max(sum(piece.positions for piece in row) for row in rows) <= 4096
    realised = counted(rows, "positions", len(shards))
    assert np.abs(realised / realised.sum() - of.shares()).max() < 0.005
    assert outlook.fill == pytest.approx({"captions alone": 0.66, "many pictures a page": 0.82}.get(mix, 1.0), abs=0.01)


@pytest.mark.parametrize("streams", [1, 8, 32])
@pytest.mark.parametrize("unit", ["text_tokens", "images", "documents", "rows"])
def test_a_thousand_rows_realise_the_shares_in_every_unit(unit: str, streams: int) -> None:
    mix = {"captions": (30, CAPTIONS), "interleaved": (50, OBELICS), "pages": (20, MMC4)}
    of, shards = recipe(mix, streams=streams, unit=unit)
    rows = rows_of(Plan(of, shards), 1024 // 32)
    realised = counted(rows, unit, 3)
    assert np.abs(realised / realised.sum() - of.shares()).max() < 0.005
    if unit == "rows":
        assert all(len({piece.source for piece in row}) == 1 for row in rows)


def test_rows_of_one_source_each_are_full_too() -> None:
    of, shards = recipe(MIXES["much text"], unit="rows")
    outlook, filled = trial(of, shards, 0, 512)
    assert outlook.fill > filled >= 0.97 * outlook.fill


def test_a_schedule_is_followed() -> None:
    mix = {**MIXES["much text"], "captions": ({0: 60, 100: 0}, CAPTIONS)}
    of, shards = recipe(mix, streams=4)
    plan = Plan(of, shards)
    for first in (0, 50, 100):
        plan.step = first
        realised = counted(rows_of(plan, 1), "positions", 3)
        plan.step = first
        realised += sum(counted(rows_of(plan, 1), "positions", 3) for _ in range(8))
        assert realised[0] / realised.sum() == pytest.approx(of.shares(first)[0], abs=0.02)
    assert realised[0] == 0


def test_planning_is_fast() -> None:
    """A document among 64 that wait costs far less than reading it; the bar is 200 microseconds."""
    of, shards = recipe(MIXES["few pictures a page"])
    plan = Plan(of, shards)
    rows_of(plan, 1)
    start_s = time.process_time()
    documents = sum(len(row) for row in rows_of(plan, 8))
    assert (time.process_time() - start_s) / documents < 200e-6


class Billion(Sizes):
    """A billion documents, none of which takes memory."""

    def __init__(self, text_tokens: int, images: int) -> None:
        self.text_tokens = np.broadcast_to(np.int32(text_tokens), 10**9)
        self.images = np.broadcast_to(np.int32(images), 10**9)


def test_a_place_after_a_billion_documents_costs_nothing_to_go_on_from() -> None:
    mix = {"captions": (45, Billion(25, 1)), "interleaved": (45, Billion(700, 3)), "text": (10, Billion(600, 0))}
    of, shards = recipe(mix, streams=4)
    state = Plan(of, shards).state()
    for plan in state["plans"]:
        plan["waiting"] = [[plan["stream"] + 4 * (10**9 + at) for at in range(64)] for _ in shards]
        plan["taken"], plan["rows"] = [10**9 + 64] * 3, 10**9
    state["step"] = 10**9
    tracemalloc.start()
    start_s = time.perf_counter()
    plan = Plan(of, shards, state=json.loads(json.dumps(state)))
    rows = rows_of(plan, 1)
    assert time.perf_counter() - start_s < 10  # most of it the means of a million lengths
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert {piece.epoch for row in rows for piece in row} == {4}
    assert plan.state()["epochs"]["captions"] == pytest.approx(4)
    assert len(json.dumps(plan.state())) < 20_000


documents = st.lists(st.tuples(st.integers(3, 40), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(documents, min_size=1, max_size=3),
    streams=st.sampled_from([1, 2, 4]),
    look_ahead=st.integers(1, 9),
    kills=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 4])), max_size=4),
    unit=st.sampled_from(["positions", "documents", "rows"]),
)
def test_every_document_exactly_once_an_epoch_with_kills_in_between(sources, streams, look_ahead, kills, unit) -> None:
    """Ranks come and go, each plans its streams, and an epoch still has every document once."""
    of = Recipe(
        corpus=Path("nowhere"), image_spec=ImageSpec(size_px=8, tokens=4), row_tokens=60, images_per_row=3,
        rows_per_step=4, streams=streams, look_ahead=look_ahead, unit=unit,
        weights={f"{number}": 1 + number for number in range(len(sources))},
    )  # fmt: skip
    shards = [Sizes(np.array([text for text, _ in source]), [images for _, images in source]) for source in sources]
    seen: Counter[tuple[int, int, int]] = Counter()
    state = Plan(of, shards).state()
    for steps, ranks in [*kills, (5, 1)]:
        ranks = min(ranks, streams)
        owned = [range(rank * streams // ranks, (rank + 1) * streams // ranks) for rank in range(ranks)]
        plans = [Plan(of, shards, own, state) for own in owned]
        for plan in plans:
            for row in rows_of(plan, steps):
                seen.update((piece.source, piece.epoch, piece.index) for piece in row)
        for plan in [Plan(of, shards, own, state) for own in owned]:
            rows_of(plan, 3)  # trained, but killed before the next checkpoint
        state = json.loads(json.dumps(merged([plan.state() for plan in plans])))
    last = Plan(of, shards, state=state)
    waiting = [piece for stream in last.streams for queue in stream.queues for piece in queue.waiting]
    seen.update((piece.source, piece.epoch, piece.index) for piece in waiting)
    assert set(seen.values()) == {1}
    for number, source in enumerate(shards):
        drawn = min(stream.taken[number] * streams + stream.number for stream in last.streams)
        for epoch in range(drawn // len(source)):
            found = {index for at, of_epoch, index in seen if (at, of_epoch) == (number, epoch)}
            assert found == set(range(len(source)))


def ending(when: str, epochs: dict[str, int], streams: int = 2) -> tuple[Plan, list[list[Piece]]]:
    small = {"captions": (45, Sizes(lengths(22, 0.4, 99, 300), 1)), "text": (55, Sizes(lengths(200, 0.8, 999, 50), 0))}
    of, shards = recipe(small, streams=streams, rows_per_step=2, max_epochs=epochs, when_exhausted=when)
    plan, rows = Plan(of, shards), []
    while plan.ended is None and plan.step < 60:
        rows += rows_of(plan, 1)
    return plan, rows


def test_a_source_that_may_not_be_repeated_gives_its_share_to_the_others() -> None:
    plan, rows = ending("drop", {"text": 2})
    assert plan.ended is None
    read = Counter((piece.epoch, piece.index) for row in rows for piece in row if piece.source == 1)
    assert read == Counter((epoch, index) for epoch in range(2) for index in range(50))
    assert not any(piece.source for row in rows[-40:] for piece in row)
    assert all(sum(piece.images for piece in row) == 16 for row in rows[-40:])
    resumed = Plan(plan.recipe, [source.shards for source in plan.sources], state=json.loads(json.dumps(plan.state())))
    assert rows_of(resumed, 3) == rows_of(plan, 3)


def test_training_may_end_with_a_source_or_with_all_of_them() -> None:
    plan, rows = ending("stop", {"text": 2})
    assert plan.ended == "text"
    assert plan.state()["ended"] == "text"
    assert sum(piece.source for row in rows for piece in row) <= 100
    plan, rows = ending("drop", {"text": 1, "captions": 1}, streams=1)
    assert plan.ended is not None
    assert Counter((piece.source, piece.index) for row in rows for piece in row) == Counter(
        [(0, index) for index in range(300)] + [(1, index) for index in range(50)]
    )
    plan, _ = ending("repeat", {"text": 1})
    assert plan.ended is None


def test_another_seed_or_epoch_is_another_order() -> None:
    of, shards = recipe({"captions": (1, Sizes(lengths(22, 0.4, 99, 300), 1))})
    source, other = Plan(of, shards).sources[0], Plan(replace(of, seed=1), shards).sources[0]
    orders: list[Callable[[int], int]] = [
        lambda at: source.at(at).index, lambda at: source.at(at + 300).index, lambda at: other.at(at).index,
    ]  # fmt: skip
    first, second, third = ([order(at) for at in range(300)] for order in orders)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(300))
    assert first != second
    assert first != third


def test_the_number_of_rows_a_batch_may_change_and_no_document_is_lost() -> None:
    of, shards = recipe(MIXES["much text"])
    plan = Plan(of, shards)
    rows_of(plan, 3)
    other = Plan(replace(of, rows_per_step=4), shards, state=json.loads(json.dumps(plan.state())))
    assert rows_of(other, 8) == rows_of(plan, 1)
