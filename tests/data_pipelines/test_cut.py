"""Nothing lost, order kept, every piece fits: whatever the document and the row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.cut import Items, Limits, cut
from mm1.data.encode import encode, text_tokens
from mm1.data.tokenizer import Tokenizer, train
from mm1.sample import Image, Sample, Text
from mm1.template import conversation

TOKENIZER = Tokenizer.from_bytes(train(["The red circle. Is it left of the square? Yes! So it is."], 330))
WORDS = st.sampled_from(
    ["red", "circle", "left.", "square?", "Yes!", "\n", "\n\n", "It", "is", "漢字。", "a", "(so.)", "Mr."]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map(" ".join).filter(str.strip)
LIMITS = st.builds(Limits, st.integers(16, 60), st.integers(1, 4), st.integers(1, 8))
ITEMS = st.lists(st.one_of(TEXTS, st.integers(0, 99)), min_size=1, max_size=12)


def document(parts: list[str | int]) -> Items:
    """Strings are texts, numbers are pictures."""
    return tuple(Text(part) if isinstance(part, str) else Image(str(part).encode()) for part in parts)


def words(items: Items) -> list[str | bytes]:
    """Words and pictures in order; white space is what a cut may drop."""
    return [word for item in items for word in ([item.data] if isinstance(item, Image) else item.text.split())]


def positions(items: Items, limits: Limits) -> int:
    return len(encode(Sample(items, "text", ""), TOKENIZER, limits.tokens_per_image).tokens)


@given(ITEMS.map(document), LIMITS)
@example(document(["漢字。 \n \n red"]), Limits(16, 1, 1))  # the first word fits without the white space after it
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_and_every_piece_fits(items: Items, limits: Limits) -> None:
    pieces, lost = cut(items, TOKENIZER, limits)
    assert lost == []
    assert words(tuple(item for piece in pieces for item in piece)) == words(items)
    for piece in pieces:
        assert positions(piece, limits) <= limits.row_tokens
        assert sum(isinstance(item, Image) for item in piece) <= limits.images_per_row
        assert piece
        assert text_tokens(piece, TOKENIZER) <= limits.row_tokens


@given(ITEMS.map(document), LIMITS)
@settings(max_examples=100, deadline=None)
def test_a_picture_stays_with_the_text_that_follows_it(items: Items, limits: Limits) -> None:
    pieces, _ = cut(items, TOKENIZER, limits)
    followed = [isinstance(a, Image) and isinstance(b, Text) for a, b in zip(items, [*items[1:], None], strict=True)]
    expected = [flag for flag, item in zip(followed, items, strict=True) if isinstance(item, Image)]
    found = [
        isinstance(b, Text)
        for piece in pieces
        for a, b in zip(piece, [*piece[1:], None], strict=True)
        if isinstance(a, Image)
    ]
    most = min(limits.images_per_row, (limits.row_tokens - 2) // limits.tokens_per_image)
    room = limits.row_tokens - 2 - most * limits.tokens_per_image
    if room >= 1 + max(len(TOKENIZER.encode(word)) for word in ["square?", "circle", "漢字。", "(so.)"]):
        assert found == expected


def test_a_document_that_fits_stays_whole() -> None:
    items = document([3, "The red circle.", 4, "It is left."])
    assert cut(items, TOKENIZER, Limits(60, 2, 4)) == ([items], [])


def test_the_drawing() -> None:
    row = Limits(2 + 4 + 14, 16, 4)
    items = document([1, "A map.", "Long text. It goes on. And on."])
    pieces, lost = cut(items, TOKENIZER, row)
    assert lost == []
    assert [words(piece) for piece in pieces] == [
        [b"1", "A", "map."], ["Long", "text."], ["It", "goes", "on."], ["And", "on."],
    ]  # fmt: skip


def test_short_items_are_never_cut_inside() -> None:
    texts = ["The red circle. It is.", "So it is. Yes!", "Is it left of the square? Yes."]
    limits = Limits(2 + max(len(TOKENIZER.encode(text)) for text in texts), 4, 4)
    pieces, _ = cut(document(texts), TOKENIZER, limits)
    assert [item.text for piece in pieces for item in piece if isinstance(item, Text)] == texts
    assert len(pieces) > 1


def test_too_many_pictures_are_a_reason_to_cut() -> None:
    pieces, lost = cut(document([1, "a", 2, "a", 3, "a", 4, "a", 5]), TOKENIZER, Limits(100, 2, 1))
    assert lost == []
    assert [words(piece) for piece in pieces] == [[b"1", "a", b"2", "a"], [b"3", "a", b"4", "a"], [b"5"]]


def test_a_word_that_no_row_takes_is_counted() -> None:
    pieces, lost = cut((Text("Yes. " + "q" * 200 + " So it is."),), TOKENIZER, Limits(20, 4, 4))
    assert lost == ["word longer than a row"]
    assert words(tuple(item for piece in pieces for item in piece)) == ["Yes.", "So", "it", "is."]


TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


@given(TURNS, st.integers(0, 2), st.integers(30, 400))
@settings(max_examples=150, deadline=None)
def test_conversations_are_cut_between_turns(turns: list[tuple[str, str]], pictures: int, row_tokens: int) -> None:
    images = [str(number).encode() for number in range(pictures)]
    limits = Limits(row_tokens, 4, 5)
    pieces, lost = cut(conversation(images, turns), TOKENIZER, limits)
    told: list[Items] = []
    for piece in pieces:
        assert positions(piece, limits) <= row_tokens
        assert [item.data for item in piece[:pictures] if isinstance(item, Image)] == images
        spoken = piece[pictures:]
        assert [item.end for item in spoken] == [False, True] * (len(spoken) // 2)
        assert [item.learn for item in spoken] == [False, True] * (len(spoken) // 2)
        told += [spoken[n : n + 2] for n in range(0, len(spoken), 2)]
    every = [conversation([], [turn]) for turn in turns]
    kept = [turn for turn in every if positions((*map(Image, images), *turn), limits) <= row_tokens]
    assert told == kept
    assert lost == ["turn longer than a row"] * (len(every) - len(kept))


@pytest.mark.parametrize("text", ["word " * 4000, "x." * 3000, "Sentence here. " * 1500])
def test_long_texts_are_cut_in_one_pass(text: str) -> None:
    limits = Limits(64, 4, 4)
    pieces, lost = cut((Text(text),), TOKENIZER, limits)
    assert sum(len("".join(item.text.split())) for piece in pieces for item in piece) + 6000 * len(lost) == len(
        "".join(text.split())
    )
    fill = [positions(piece, limits) for piece in pieces[:-1]]
    assert not fill or min(fill) > 64 / 2


@given(ITEMS.map(document), LIMITS)
@settings(max_examples=80, deadline=None)
def test_cuts_between_words_lose_nothing_and_fill_more(items: Items, limits: Limits) -> None:
    pieces, lost = cut(items, TOKENIZER, replace(limits, cut="words"))
    assert lost == []
    assert words(tuple(item for piece in pieces for item in piece)) == words(items)
    assert all(positions(piece, limits) <= limits.row_tokens for piece in pieces)


@given(ITEMS.map(document), LIMITS)
@settings(max_examples=80, deadline=None)
def test_cuts_between_items_keep_every_item_whole(items: Items, limits: Limits) -> None:
    pieces, lost = cut(items, TOKENIZER, replace(limits, cut="items"))
    kept = [item for piece in pieces for item in piece]
    assert len(kept) + len(lost) == len(items)
    assert all(item in items for item in kept)
    assert set(lost) <= {"text longer than a row"}
    assert all(positions(piece, limits) <= limits.row_tokens for piece in pieces)


def test_a_document_that_may_not_be_cut_is_left_out_and_a_short_one_is_whole() -> None:
    limits = Limits(32, 4, 4, "never")
    assert cut(document(["red circle."]), TOKENIZER, limits) == ([document(["red circle."])], [])
    assert cut(document(["red circle. " * 30]), TOKENIZER, limits) == ([], ["document longer than a row"])
    full = cut(document(["red circle. " * 30]), TOKENIZER, replace(limits, cut="words"))[0]
    assert [positions(piece, limits) for piece in full[:-1]] >= [limits.row_tokens - 3] * (len(full) - 1)
