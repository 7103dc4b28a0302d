"""Documents into rows with little padding, without cutting and without starving any (MM1, section 4).

A look-ahead buffer holds the next K documents of the mixture. A row opens with the oldest of them, so that none waits
longer than K rows; then the largest that still fits follows, again and again, and its place is refilled at once. The
row closes when nothing in the buffer fits. With rows of 8 positions, K = 3, and documents a5 b6 c2 d1 e7 (letter and
length) coming in that order:

    buffer      row
    a5 b6 c2    a5            the oldest opens, 3 positions left; d1 takes its place
    b6 c2 d1    a5 c2         the largest that fits, 1 left; e7 takes its place
    b6 d1 e7    a5 c2 d1      full
    b6 e7 ..    b6 ..         the next row

Pictures are the second limit: what would bring more than ``images_per_row`` does not fit. This file only plans, from
two numbers a document; ``mm1.data.streams`` fetches what the plan names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm1.batch import Batch, targets_of
from mm1.data.encode import Encoded


@dataclass(frozen=True, slots=True)
class Piece:
    """A document by reference, with what packing must know of it.

    Args:
        source: Index of its source in the mixture.
        epoch: How often that source had been read through before.
        index: Its index within the source.
        positions: Positions it takes, pictures included.
        images: Pictures it brings.
    """

    source: int
    epoch: int
    index: int
    positions: int
    images: int


def next_row(
    buffer: list[Piece], draw: Callable[[], Piece | None], look_ahead: int, row_tokens: int, images_per_row: int
) -> list[Piece]:
    """Plan one row, taking pieces out of ``buffer`` and refilling it.

    Args:
        buffer: Waiting pieces, oldest first; changed in place.
        draw: The next piece of the mixture, or None at the end of a finite one.
        look_ahead: How many pieces the buffer holds.
        row_tokens: Positions of a row.
        images_per_row: Most pictures of a row.

    Returns:
        The row's pieces in order; empty when nothing is left.
    """
    row: list[Piece] = []
    positions, images = row_tokens, images_per_row
    while True:
        while len(buffer) < look_ahead and (piece := draw()) is not None:
            buffer.append(piece)
        fitting = [i for i, piece in enumerate(buffer) if piece.positions <= positions and piece.images <= images]
        if not fitting:
            return row
        chosen = max(fitting, key=lambda i: buffer[i].positions) if row else 0
        piece = buffer.pop(chosen)
        row.append(piece)
        positions, images = positions - piece.positions, images - piece.images


def to_batch(
    rows: Sequence[Sequence[tuple[int, str, Encoded]]],
    images_ICHW: Tensor,
    row_tokens: int,
    sources: tuple[str, ...],
) -> Batch:
    """Lay documents out as in the drawing of :mod:`mm1.batch`.

    Args:
        rows: For every row its documents as (source index, document id, encoded document).
        images_ICHW: uint8[I, 3, S, S], the prepared pictures of all documents in that order.
        row_tokens: T.
        sources: Names of the sources.
    """
    shape = (len(rows), row_tokens)
    tokens_BT = torch.zeros(shape, dtype=torch.int64)
    segments_BT, positions_BT, sources_BT = tokens_BT.clone(), tokens_BT.clone(), tokens_BT.clone()
    learn_BT = torch.zeros(shape, dtype=torch.bool)
    for b, row in enumerate(rows):
        start = 0
        for segment, (source, _, document) in enumerate(row, start=1):
            place = slice(start, start + len(document.tokens))
            tokens_BT[b, place], learn_BT[b, place] = document.tokens, document.learn
            segments_BT[b, place], sources_BT[b, place] = segment, source
            positions_BT[b, place] = torch.arange(len(document.tokens))
            start = place.stop
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=targets_of(tokens_BT, segments_BT, learn_BT),
        segments_BT=segments_BT,
        positions_BT=positions_BT,
        sources_BT=sources_BT,
        images_ICHW=images_ICHW,
        sources=sources,
        documents=tuple(name for row in rows for _, name, _ in row),
    )
