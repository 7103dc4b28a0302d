"""Trays between a worker and this process: what arrives is what was sent, and nothing in use is written over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mm1.batch import Batch
from mm1.data.image import channels_first, room
from mm1.data.trays import Trays

ROWS, ROW_TOKENS, SIDE, MOST = 2, 8, 5, 3
PICTURE = 3 * SIDE * SIDE


def batch_of(number: int, memory: numpy.ndarray | None) -> Batch:
    """The batch that has this number everywhere, with none to three pictures."""
    words = [torch.full((ROWS, ROW_TOKENS), 10 * number + k) for k in range(5)]
    images_ICHW = channels_first(room(number % (MOST + 1), SIDE, memory))
    for at, place_CHW in enumerate(images_ICHW):
        place_CHW.copy_(torch.arange(PICTURE).view(3, SIDE, SIDE).add(number + at).to(torch.uint8))
    state = {"number": number} if number % 2 else None
    return Batch(*words, images_ICHW, ("a", "b"), (f"a/{number}",), window_targets=number, state=state)


class Numbered(IterableDataset[list[Batch]]):
    """``count`` batches from a worker, with where each was made."""

    def __init__(self, trays: Trays | None, count: int, elsewhere: bool = False) -> None:
        self.trays, self.count, self.elsewhere = trays, count, elsewhere

    def __iter__(self) -> Iterator[object]:
        for number in range(self.count):
            tray = self.trays.take() if self.trays else None
            batch = batch_of(number, tray.memory if tray and not self.elsewhere else None)
            yield tray.number if tray else None, tray.parcel(batch) if tray else batch


def trays_of(count: int) -> Trays:
    return Trays(count, rows=ROWS, row_tokens=ROW_TOKENS, picture_bytes=MOST * PICTURE)


def loader(trays: Trays | None, count: int, elsewhere: bool = False) -> DataLoader[object]:
    source = Numbered(trays, count, elsewhere)
    return DataLoader(source, batch_size=None, num_workers=1, multiprocessing_context="fork")


def assert_same(found: Batch, wanted: Batch) -> None:
    for about in fields(Batch):
        one, other = getattr(found, about.name), getattr(wanted, about.name)
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other, about.name


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_arrives_is_what_was_sent(elsewhere: bool) -> None:
    trays = trays_of(4)
    used = set()
    for number, (tray, batch) in enumerate(loader(trays, 40, elsewhere)):
        assert_same(batch, batch_of(number, None))
        assert batch.images_ICHW.shape == (number % (MOST + 1), 3, SIDE, SIDE)
        used.add(tray)
    assert used <= {0, 1, 2, 3}  # forty batches through at most four


def test_a_batch_that_is_kept_is_not_written_over_and_others_travel_without_a_tray() -> None:
    kept = [batch for _, batch in loader(trays_of(2), 12)]
    for number, batch in enumerate(kept):
        assert_same(batch, batch_of(number, None))


@pytest.mark.parametrize("kept", [lambda batch: batch.images_ICHW[1:2, 0], lambda batch: batch.sources_BT[0, 3:]])
def test_one_view_keeps_its_tray(kept: Callable[[Batch], Tensor]) -> None:
    trays = trays_of(2)
    views, makers = [], []
    for tray, batch in loader(trays, 20):
        makers.append(tray)
        if len(batch.images_ICHW) == MOST and not views:
            views.append((tray, kept(batch), kept(batch).clone()))
        del batch
    held, view, copy = views[0]
    assert torch.equal(view, copy)
    assert held not in makers[MOST + 1 :]
    assert trays.free == 1
    views.clear()
    del view
    assert trays.free == 2


def test_without_a_free_tray_there_is_none() -> None:
    trays = trays_of(1)
    tray = trays.take()
    assert tray is not None
    assert trays.take() is None
    trays.give_back(tray.number)
    assert trays.take() is not None


def test_tensors_are_shared_and_not_copied() -> None:
    trays = trays_of(1)
    tray = trays.take()
    assert tray is not None
    sent = batch_of(3, tray.memory)
    arrived = trays.arrived(tray.number, replace(sent), len(sent.images_ICHW), SIDE)
    sent.images_ICHW[0, 0, 0, 0] = 77
    assert arrived.images_ICHW[0, 0, 0, 0] == 77
