"""The drawing of ``mm1.data.encode`` and its borders."""

from __future__ import annotations

from mm1.batch import IGNORE, IMAGE, targets_of
from mm1.data.encode import encode, prompt, text_tokens
from mm1.data.tokenizer import Tokenizer, train
from mm1.sample import Image, Sample, Text
from mm1.template import conversation

TOKENIZER = Tokenizer.from_bytes(train([chr(97 + n) * 3 for n in range(26)], 310))
PICTURE = Image(b"picture")


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def sample(*items: Text | Image) -> Sample:
    return Sample(items, "captions", "0")


def test_the_drawing() -> None:
    encoded = encode(sample(PICTURE, Text("a b"), Text("c", end=True)), TOKENIZER, 2)
    text = [*ids("a b"), *ids("c"), TOKENIZER.eos]
    assert encoded.tokens.tolist() == [TOKENIZER.bos, IMAGE, IMAGE, *text]
    assert encoded.learn.tolist() == [False] * 3 + [True] * len(text)
    assert encoded.images == [PICTURE]


def test_a_document_is_closed_once() -> None:
    open_end = encode(sample(Text("a")), TOKENIZER, 2)
    closed = encode(sample(Text("a", end=True)), TOKENIZER, 2)
    assert open_end.tokens.tolist() == closed.tokens.tolist() == [TOKENIZER.bos, *ids("a"), TOKENIZER.eos]
    assert open_end.learn.tolist() == closed.learn.tolist()


def test_what_is_only_read_is_no_target() -> None:
    encoded = encode(sample(*conversation([b"picture"], [("what", "red"), ("and", "blue")])), TOKENIZER, 1)
    targets = targets_of(encoded.tokens, encoded.tokens * 0 + 1, encoded.learn)
    learned = [token for token in targets.tolist() if token != IGNORE]
    assert learned == [*ids("red"), TOKENIZER.eos, *ids("blue"), TOKENIZER.eos]


def test_no_end_is_learned_after_what_is_only_read() -> None:
    encoded = encode(sample(Text("a", learn=False)), TOKENIZER, 1)
    assert encoded.tokens[-1] == TOKENIZER.eos
    assert not encoded.learn.any()


def test_a_prompt_is_the_same_without_the_end() -> None:
    items = (PICTURE, Text("b", end=True), PICTURE, Text("a"))
    whole, asked = encode(sample(*items), TOKENIZER, 3), prompt(items, TOKENIZER, 3)
    assert asked.tokens.tolist() == whole.tokens.tolist()[:-1]
    assert asked.learn.tolist() == whole.learn.tolist()[:-1]
    assert asked.images == whole.images == [PICTURE] * 2
    assert prompt((), TOKENIZER, 3).tokens.tolist() == [TOKENIZER.bos]


def test_text_tokens_are_the_positions_that_are_no_pictures() -> None:
    for items in ((PICTURE, Text("a b")), (Text("a", end=True),), (PICTURE,), conversation([b""], [("q", "a")]), ()):
        tokens = encode(sample(*items), TOKENIZER, 5).tokens
        assert text_tokens(items, TOKENIZER) == int((tokens != IMAGE).sum())
