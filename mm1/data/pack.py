"""Documents into rows with little padding, without cutting and without starving any (MM1, section 4).

Of every source, the next K documents wait in a queue. A row opens with the oldest document of the source that is owed
most; then, again and again, the source that is owed most gives the document of its queue that fits best, or the next
source does if none of its fits, and every place in a queue is refilled at once. The row closes when nothing fits. Rows
of 8 positions, K = 3, and one source with the documents a5 b6 c2 d1 e7 (letter and length), in that order:

    queue       row
    a5 b6 c2    a5            the oldest opens, 3 positions left; d1 takes its place
    b6 c2 d1    a5 c2         the longest that fits, 1 left; e7 takes its place
    b6 d1 e7    a5 c2 d1      full
    b6 e7 ..    b6 ..         the next row

A row has two limits, positions and pictures, and is full when either is used up. Best is therefore what leaves the
least room that the pictures left could not fill, each coming with as many positions as in the mix; of equals, the
longest. A document after which 3 K of its source were drawn lets none of them go first any more.

To fill a row to its end, a source may be taken a little further than its share: ``slack`` rows' worth. This file only
plans, from two numbers a document; :mod:`mm1.data.reader` fetches what the plan names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from mm1.batch import Batch, targets_of
from mm1.data.encode import Encoded

PATIENCE = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A document by reference, with what packing must know of it.

    Args:
        source: Index of its source in the mixture.
        place: Its place in the endless sequence of that source.
        epoch: How often that source had been read through before.
        index: Its index within the source.
        positions: Positions it takes, pictures included.
        images: Pictures it brings.
    """

    source: int
    place: int
    epoch: int
    index: int
    positions: int
    images: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a row takes.

    Args:
        row_tokens: Positions.
        images_per_row: Most pictures.
        positions_per_picture: How many positions come with a picture in the mix, its own and those of text.
        spare: Positions that stay padding in any case, as pictures run out first.
    """

    row_tokens: int
    images_per_row: int
    positions_per_picture: float
    spare: float = 0.0


class Queue:
    """The documents of one source that wait to be packed, oldest first.

    Args:
        draw: The next document of the source, or None where there is none.
        look_ahead: How many wait.
        stride: How far apart the places of two documents drawn one after the other are.
        waiting: Those that wait already.
    """

    def __init__(
        self, draw: Callable[[], Piece | None], look_ahead: int, stride: int = 1, waiting: Sequence[Piece] = ()
    ) -> None:
        self.draw, self.look_ahead, self.waiting = draw, look_ahead, list(waiting)
        self.patience = PATIENCE * look_ahead * stride
        self._refill()

    def __len__(self) -> int:
        return len(self.waiting)

    def _refill(self) -> None:
        while len(self.waiting) < self.look_ahead and (piece := self.draw()) is not None:
            self.waiting.append(piece)

    def best(self, positions: int, images: int, limits: Limits) -> int | None:
        """Which one fits best into what a row has left, positions and pictures; None if none does."""
        positions_per_picture, spare = limits.positions_per_picture, limits.spare
        waiting = self.waiting
        if waiting and waiting[-1].place - waiting[0].place >= self.patience:
            waiting = waiting[:1]
        chosen, least_wasted, least_room = None, math.inf, math.inf
        for at, piece in enumerate(waiting):
            room, pictures = positions - piece.positions, images - piece.images
            if room < 0 or pictures < 0:
                continue
            wasted = room - pictures * positions_per_picture - spare
            if wasted < 0:
                wasted = 0
            if wasted < least_wasted or (wasted == least_wasted and room < least_room):
                chosen, least_wasted, least_room = at, wasted, room
        return chosen

    def take(self, at: int) -> Piece:
        """Take one out; another one comes in."""
        piece = self.waiting.pop(at)
        self._refill()
        return piece


def next_row(
    queues: Sequence[Queue], limits: Limits, ranked: Callable[[], Sequence[int]], book: Callable[[Piece], None]
) -> list[Piece]:
    """Plan one row, taking documents out of the queues.

    Args:
        queues: One of every source.
        limits: What the row takes; every document fits into an empty one.
        ranked: The sources that may give the next document, the one that should first.
        book: Called with every document that was laid into the row.

    Returns:
        The row's documents in order; empty when nothing is left.
    """
    row: list[Piece] = []
    positions, images = limits.row_tokens, limits.images_per_row
    while True:
        for source in ranked():
            queue = queues[source]
            at = queue.best(positions, images, limits) if row else (0 if len(queue) else None)
            if at is not None:
                break
        else:
            return row
        piece = queue.take(at)
        row.append(piece)
        book(piece)
        positions, images = positions - piece.positions, images - piece.images


def to_batch(
    rows: Sequence[Sequence[tuple[int, str, Encoded | int]]],
    images_ICHW: Tensor,
    row_tokens: int,
    sources: tuple[str, ...],
) -> Batch:
    """Lay documents out as in the drawing of :mod:`mm1.batch`.

    Args:
        rows: For every row its documents as (source index, document id, encoded document); for one that was damaged the
            positions it would have taken, which stay padding.
        images_ICHW: uint8[I, 3, S, S], the prepared pictures of all documents in that order.
        row_tokens: T.
        sources: Names of the sources.
    """
    tokens, segments, positions, numbers = numpy.zeros((4, len(rows), row_tokens), numpy.int64)
    learn, count = numpy.zeros((len(rows), row_tokens), numpy.bool_), numpy.arange(row_tokens)
    for b, row in enumerate(rows):
        start = 0
        for segment, (source, _, document) in enumerate(row, start=1):
            if isinstance(document, int):
                start += document
                continue
            place = b, slice(start, start + len(document.tokens))
            tokens[place], learn[place] = document.tokens.numpy(), document.learn.numpy()
            segments[place], numbers[place], positions[place] = segment, source, count[: len(document.tokens)]
            start = place[1].stop
    # numpy lays a short stretch into place in a fifth of the time that torch takes
    tokens_BT, segments_BT, positions_BT, sources_BT, learn_BT = map(
        torch.from_numpy, (tokens, segments, positions, numbers, learn)
    )
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=targets_of(tokens_BT, segments_BT, learn_BT),
        segments_BT=segments_BT,
        positions_BT=positions_BT,
        sources_BT=sources_BT,
        images_ICHW=images_ICHW,
        sources=sources,
        documents=tuple(name for row in rows for _, name, document in row if isinstance(document, Encoded)),
    )
