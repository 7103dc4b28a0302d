"""Any text survives the tokenizer; a vocabulary that cannot be is refused with the size that can."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer, train
from mm1.errors import UserError

LINES = [f"The {colour} {shape} stands left of it." for colour in ("red", "green") for shape in ("circle", "square")]
TOKENIZER = Tokenizer.from_bytes(train(LINES, 320))


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text.replace("\u2581", " ")  # sentencepiece's sign for a space


@pytest.mark.parametrize(
    "text", ["", " ", "  two", "\n\nlines\n ", "a\tb", "\r\n", "é漢😀", "</s><s><unk>", "\x00", "<0x0A>"]
)
def test_awkward_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_control_tokens_are_fixed_and_text_never_makes_them() -> None:
    assert (TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos) == (PAD, BOS, EOS) == (0, 1, 2)
    assert not {PAD, BOS, EOS, UNK} & set(TOKENIZER.encode("<pad><s></s><unk> red"))
    assert TOKENIZER.decode([BOS, *TOKENIZER.encode("red"), EOS, PAD]) == "red"


def test_newlines_and_digits_stand_alone() -> None:
    newline = TOKENIZER.encode("a\nb")[-2]
    assert TOKENIZER.encode("\n\n\n")[-3:] == [newline] * 3
    digits = Tokenizer.from_bytes(train(["2024 2024 2024 20 24"] * 9, 272))
    assert len(digits.encode("x2024")) == len(digits.encode("x")) + 4


def test_training_is_a_function_of_the_text() -> None:
    assert train(LINES, 320) == TOKENIZER.proto != train(LINES[:2], 320)


def test_file_bytes_and_pickle_are_the_same_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(TOKENIZER.proto)
    for other in (Tokenizer(path), Tokenizer.from_bytes(TOKENIZER.proto), pickle.loads(pickle.dumps(TOKENIZER))):
        assert other.fingerprint == TOKENIZER.fingerprint
        assert other.vocabulary == 320
        assert other.encode("red circle\n") == TOKENIZER.encode("red circle\n")
    assert Tokenizer.from_bytes(train(LINES[:2], 310)).fingerprint != TOKENIZER.fingerprint


def test_a_vocabulary_too_large_names_the_largest() -> None:
    with pytest.raises(UserError, match=r"fills at most (\d+) ids, not 9999: set vocabulary to \1 or less") as caught:
        train(LINES, 9999)
    largest = int(str(caught.value).split(" ids")[0].split()[-1])
    assert Tokenizer.from_bytes(train(LINES, largest)).vocabulary == largest
    with pytest.raises(UserError):
        train(LINES, largest + 1)


def test_a_vocabulary_too_small_names_the_smallest() -> None:
    with pytest.raises(UserError, match=r"alone take (\d+) ids, not 200: set vocabulary to \1 or more") as caught:
        train(LINES, 200)
    smallest = int(str(caught.value).split(" ids")[0].split()[-1])
    assert Tokenizer.from_bytes(train(LINES, smallest)).vocabulary == smallest


@pytest.mark.parametrize("vocabulary", [0, -3, 3_000_000_000])
def test_a_vocabulary_that_cannot_be_is_named(vocabulary: int) -> None:
    with pytest.raises(UserError, match=f"^vocabulary is {vocabulary}; expected a number of ids"):
        train(["some text"], vocabulary)


def test_no_text_is_said() -> None:
    with pytest.raises(UserError, match="no text to train"):
        train([], 300)


def test_lines_with_tabs_are_learned_from() -> None:
    tabbed = Tokenizer.from_bytes(train(["zebra\tzebra zebra"] * 20, 280))
    assert len(tabbed.encode("zebra")) < len("zebra")


@pytest.mark.parametrize("content", [None, b"no model", b""])
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model is"):
        Tokenizer(path)
