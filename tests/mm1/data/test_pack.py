"""Every document lands once, whole, in a row that holds it; and a row says the truth about itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.batch import IGNORE, IMAGE, targets_of
from mm1.data.encode import Encoded
from mm1.data.pack import PATIENCE, Limits, Piece, Queue, next_row, to_batch

ROW_TOKENS, IMAGES_PER_ROW, TOKENS_PER_IMAGE = 40, 3, 5


def sized(index: int, positions: int, images: int = 0, source: int = 0) -> Piece:
    return Piece(source, index, 0, index, positions, images)


def plan(pieces: list[Piece], look_ahead: int, row_tokens: int = ROW_TOKENS) -> list[list[Piece]]:
    waiting, rows = iter(pieces), []
    queue = Queue(lambda: next(waiting, None), look_ahead)
    limits = Limits(row_tokens, IMAGES_PER_ROW, row_tokens)
    while row := next_row([queue], limits, lambda: [0], lambda piece: None):
        rows.append(row)
    return rows


def test_the_drawing_of_the_module() -> None:
    pieces = [sized(index, positions) for index, positions in enumerate([5, 6, 2, 1, 7])]
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
    pieces = [sized(index, positions, images) for index, (positions, images) in enumerate(sizes)]
    rows = plan(pieces, look_ahead)
    assert sorted(piece.index for row in rows for piece in row) == list(range(len(pieces)))
    for number, row in enumerate(rows):
        assert sum(piece.positions for piece in row) <= ROW_TOKENS
        assert sum(piece.images for piece in row) <= IMAGES_PER_ROW
        placed_after = [piece.index for later in rows[number:] for piece in later]
        assert row[0].index == min(placed_after), "a row opens with the oldest"


def test_the_other_limit_counts_as_well() -> None:
    """With two pictures left for 20 positions, the picture comes first that leaves no room without one."""
    queue = Queue(iter([sized(0, 9), sized(1, 10, 1), sized(2, 6, 1), sized(3, 12, 2), None]).__next__, 4)
    limits = Limits(20, 2, positions_per_picture=10)
    assert queue.best(20, 2, limits) == 1
    assert queue.best(20, 1, limits) == 0
    assert queue.best(12, 2, limits) == 3
    assert queue.best(9, 0, limits) == 0
    assert queue.best(5, 2, limits) is None
    assert queue.best(20, 1, Limits(20, 2, positions_per_picture=10, spare=10)) == 1, "these ten are lost anyway"


def test_a_document_that_never_fits_best_has_its_turn() -> None:
    """Among many of 20, which fill rows of 40 in pairs, one of 25 is taken, though it never fits as well."""
    endless = (sized(index, 25 if index == 1 else 20) for index in range(10**6))
    queue, rows = Queue(lambda: next(endless), 4), 0
    while 1 in [piece.index for piece in queue.waiting]:
        next_row([queue], Limits(40, 0, 40), lambda: [0], lambda piece: None)
        rows += 1
    assert rows <= PATIENCE * 4


def test_a_source_without_a_fitting_document_gives_way() -> None:
    long, short = [sized(index, 30) for index in range(2)], [sized(index, 5, source=1) for index in range(9)]
    queues = [Queue(iter([*waiting, *[None] * 20]).__next__, 3) for waiting in (long, short)]
    row = next_row(queues, Limits(40, 0, 40), lambda: [0, 1], lambda piece: None)
    assert [piece.positions for piece in row] == [30, 5, 5]


def test_looking_ahead_fills_rows() -> None:
    pieces = [sized(index, 4 + (index * 7919) % 30) for index in range(600)]
    positions = sum(piece.positions for piece in pieces)
    fill = {k: positions / (ROW_TOKENS * len(plan(pieces, k))) for k in (1, 16)}
    assert fill[16] > 0.97 > fill[1]


def test_a_damaged_document_is_a_hole_and_no_one_moves() -> None:
    tokens = torch.tensor([5, 6, 7])
    whole = Encoded(tokens, torch.ones(3, dtype=torch.bool), [])
    none = torch.zeros(0, 3, 2, 2, dtype=torch.uint8)
    row, damaged = [(0, "a", whole), (1, "b", whole), (0, "c", whole)], [(0, "a", whole), (1, "", 3), (0, "c", whole)]
    batch, other = (to_batch([laid], none, 12, ("x", "y")) for laid in (row, damaged))
    kept = torch.tensor([True] * 3 + [False] * 3 + [True] * 6)
    for name in ("tokens_BT", "targets_BT", "segments_BT", "positions_BT", "sources_BT"):
        assert torch.equal(getattr(batch, name)[:, kept], getattr(other, name)[:, kept])
    assert not other.segments_BT[:, 3:6].any()
    assert (other.targets_BT[:, 3:6] == IGNORE).all()
    assert other.documents == ("a", "c")


@settings(max_examples=60, deadline=None)
@given(sizes=documents, seed=st.integers(0, 1000))
def test_a_batch_says_the_truth_about_its_rows(sizes, seed) -> None:
    chance = torch.Generator().manual_seed(seed)
    pieces = [sized(index, *size, source=index % 2) for index, size in enumerate(sizes)]
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
