"""Every document lands once, whole, in a row that holds it; and a row says the truth about itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.batch import IMAGE, targets_of
from mm1.data.encode import Encoded
from mm1.data.pack import Piece, next_row, to_batch

ROW_TOKENS, IMAGES_PER_ROW, TOKENS_PER_IMAGE = 40, 3, 5


def plan(pieces: list[Piece], look_ahead: int, row_tokens: int = ROW_TOKENS) -> list[list[Piece]]:
    waiting, buffer, rows = iter(pieces), [], []
    while row := next_row(buffer, lambda: next(waiting, None), look_ahead, row_tokens, IMAGES_PER_ROW):
        rows.append(row)
    return rows


def test_the_drawing_of_the_module() -> None:
    pieces = [Piece(0, 0, index, positions, 0) for index, positions in enumerate([5, 6, 2, 1, 7])]
    assert [[piece.positions for piece in row] for row in plan(pieces, 3, row_tokens=8)] == [[5, 2, 1], [6], [7]]


documents = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, IMAGES_PER_ROW)).map(
        lambda sizes: (sizes[0] + sizes[1] * TOKENS_PER_IMAGE, sizes[1])
    ),
    max_size=80,
)


@settings(max_examples=100, deadline=None)
@given(sizes=documents, look_ahead=st.integers(1, 20))
def test_once_each_within_both_limits_and_none_starves(sizes, look_ahead) -> None:
    pieces = [Piece(0, 0, index, positions, images) for index, (positions, images) in enumerate(sizes)]
    rows = plan(pieces, look_ahead)
    assert sorted(piece.index for row in rows for piece in row) == list(range(len(pieces)))
    for number, row in enumerate(rows):
        assert sum(piece.positions for piece in row) <= ROW_TOKENS
        assert sum(piece.images for piece in row) <= IMAGES_PER_ROW
        placed_after = [piece.index for later in rows[number:] for piece in later]
        assert row[0].index == min(placed_after), "a row opens with the oldest"


def test_looking_ahead_fills_rows() -> None:
    pieces = [Piece(0, 0, index, 4 + (index * 7919) % 30, 0) for index in range(600)]
    positions = sum(piece.positions for piece in pieces)
    fill = {k: positions / (ROW_TOKENS * len(plan(pieces, k))) for k in (1, 16)}
    assert fill[16] > 0.97 > fill[1]


@settings(max_examples=60, deadline=None)
@given(sizes=documents, seed=st.integers(0, 1000))
def test_a_batch_says_the_truth_about_its_rows(sizes, seed) -> None:
    chance = torch.Generator().manual_seed(seed)
    pieces = [Piece(index % 2, 0, index, positions, images) for index, (positions, images) in enumerate(sizes)]
    encoded = {}
    for piece in pieces:
        text = piece.positions - piece.images * TOKENS_PER_IMAGE
        tokens = torch.cat(
            [torch.full((piece.images * TOKENS_PER_IMAGE,), IMAGE), torch.randint(1, 99, (text,), generator=chance)]
        )
        learn = (tokens != IMAGE) & (torch.rand(len(tokens), generator=chance) > 0.3)
        encoded[piece.index] = Encoded(tokens, learn, [b""] * piece.images)
    rows = plan(pieces, 8)
    laid = [[(piece.source, str(piece.index), encoded[piece.index]) for piece in row] for row in rows]
    images = torch.zeros(sum(piece.images for piece in pieces), 3, 2, 2, dtype=torch.uint8)
    batch = to_batch(laid, images, ROW_TOKENS, ("a", "b"))
    assert batch.documents == tuple(str(piece.index) for row in rows for piece in row)
    for b, row in enumerate(rows):
        start = 0
        for segment, piece in enumerate(row, start=1):
            place, document = slice(start, start + piece.positions), encoded[piece.index]
            assert torch.equal(batch.tokens_BT[b, place], document.tokens)
            assert torch.equal(batch.positions_BT[b, place], torch.arange(piece.positions))
            assert set(batch.segments_BT[b, place].tolist()) == {segment}
            assert set(batch.sources_BT[b, place].tolist()) == {piece.source}
            alone = targets_of(document.tokens, torch.ones_like(document.tokens), document.learn)
            assert torch.equal(batch.targets_BT[b, place], alone), "targets as if the document were alone"
            start = place.stop
        assert not batch.segments_BT[b, start:].any()
        assert (batch.targets_BT[b, start:] < 0).all()
