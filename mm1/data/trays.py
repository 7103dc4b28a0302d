"""Batches on their way from a worker to the training process, in memory that is used again and again.

A DataLoader's worker puts every tensor into new shared memory. The kernel has to find, clear and map each page of it,
which takes from a tenth to a half of the time that decoding the pictures takes, and containers often allow little of
it (``/dev/shm``). Here a worker decodes into a tray; the training process sees the same memory, and when nothing there
holds a tensor of the batch any more (a GPU run has copied it to page-locked memory by then), the worker may fill the
tray again. Where no tray is free, the batch travels as any other.

    worker      take() -> tray, pictures decoded into tray.memory      tray.parcel(batch)  -- pickled -->
    training    unpickled: the batch, its tensors in the tray          last tensor gone: the tray is free
"""

from __future__ import annotations

import itertools
import mmap
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch

from mm1.batch import Batch
from mm1.data.image import channels_first, room

WORDS = ("tokens_BT", "targets_BT", "segments_BT", "positions_BT", "sources_BT")  # int64, all of one shape
FREE, TAKEN = 0, 1

_here: weakref.WeakValueDictionary[int, Trays] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Trays:
    """The trays of one worker: made before it is forked, so that both processes see the same memory.

    Args:
        trays: How many. Only those that are used, and of them what is used, takes memory.
        rows: B, rows of a batch.
        row_tokens: T.
        picture_bytes: The most that the pictures of a batch take.
    """

    def __init__(self, trays: int, *, rows: int, row_tokens: int, picture_bytes: int) -> None:
        self.shape = (len(WORDS), rows, row_tokens)
        self.words_bytes = 8 * len(WORDS) * rows * row_tokens
        self.tray_bytes = self.words_bytes + picture_bytes
        page = mmap.PAGESIZE
        self._step = -(-self.tray_bytes // page) * page
        memory = mmap.mmap(-1, trays * (self._step + 1))
        self._state = numpy.frombuffer(memory, numpy.uint8, trays, trays * self._step)
        self._memory = memory
        self.number = next(_numbers)
        _here[self.number] = self

    @property
    def free(self) -> int:
        """How many are free."""
        return int((self._state == FREE).sum())

    def take(self) -> Tray | None:
        """For the worker: a tray to fill, if one is free."""
        free = numpy.flatnonzero(self._state == FREE)
        if not len(free):
            return None
        self._state[free[0]] = TAKEN
        return Tray(self, int(free[0]))

    def bytes_of(self, tray: int) -> numpy.ndarray:
        """The memory of a tray."""
        return numpy.frombuffer(self._memory, numpy.uint8, self.tray_bytes, tray * self._step)

    def words(self, memory: numpy.ndarray) -> numpy.ndarray:
        """int64[5, B, T] of a tray's memory, what stands in it before the pictures."""
        return memory[: self.words_bytes].view(numpy.int64).reshape(self.shape)

    def give_back(self, tray: int) -> None:
        """For the training process: the worker may fill this tray again."""
        self._state[tray] = FREE

    def arrived(self, tray: int, batch: Batch, images: int, size_px: int) -> Batch:
        """For the training process: the batch whose tensors lie in ``tray``; it is given back with the last of them."""
        memory = self.bytes_of(tray)  # an array that every view of it holds, tensors among them
        weakref.finalize(memory, self.give_back, tray).atexit = False
        words = torch.from_numpy(self.words(memory))
        images_ICHW = channels_first(room(images, size_px, memory[self.words_bytes :]))
        tensors: dict[str, Any] = dict(zip(WORDS, words.unbind(), strict=True))
        return replace(batch, **tensors, images_ICHW=images_ICHW)


@dataclass(frozen=True)
class Tray:
    """One of them, in the hands of the worker."""

    trays: Trays
    number: int

    @property
    def memory(self) -> numpy.ndarray:
        """uint8[bytes]; where the batch's pictures go (:func:`mm1.data.image.room`)."""
        return self.trays.bytes_of(self.number)[self.trays.words_bytes :]

    def parcel(self, batch: Batch) -> Parcel:
        """What to send for a batch: its tensors lie in the tray from now on, pictures that do already stay there."""
        words = self.trays.words(self.trays.bytes_of(self.number))
        for place_BT, name in zip(words, WORDS, strict=True):
            place_BT[:] = getattr(batch, name).numpy()
        images_ICHW = batch.images_ICHW
        place_ICHW = channels_first(room(len(images_ICHW), images_ICHW.shape[-1], self.memory))
        if place_ICHW.data_ptr() != images_ICHW.data_ptr():
            place_ICHW.copy_(images_ICHW)
        none: dict[str, Any] = dict.fromkeys((*WORDS, "images_ICHW"))
        bare = replace(batch, **none)
        return Parcel(self.trays.number, self.number, bare, len(images_ICHW), images_ICHW.shape[-1])


@dataclass(frozen=True)
class Parcel:
    """A batch on its way; what is unpickled at the other end is the batch itself."""

    trays: int
    tray: int
    bare: Batch
    images: int
    size_px: int

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _unpacked, (self.trays, self.tray, self.bare, self.images, self.size_px)


def _unpacked(trays: int, tray: int, bare: Batch, images: int, size_px: int) -> Batch:
    return _here[trays].arrived(tray, bare, images, size_px)
