"""A sentencepiece vocabulary as ``tokenizer.json``: the ids of real text stay, and what has no equal is told."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from mm1.data.tokenizer import Tokenizer, train
from mm1.errors import UserError
from mm1.interop.fast_tokenizer import tokenizer_json

DATA = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[3] / ".." / "shared" / "data"))
LINES = ["the red circle, left of aaaa blue squares", "It's -- naïve café -- 1234!", "one two  three   four"] * 20


def fast(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))


def other(**settings: Any) -> Tokenizer:
    """A sentencepiece model of other settings than ours."""
    proto = io.BytesIO()
    settings = {"vocab_size": 330, "model_type": "bpe", "minloglevel": 2, "byte_fallback": True} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=proto, **settings)
    return Tokenizer.from_bytes(proto.getvalue())


@pytest.mark.parametrize("vocabulary", [400, 4000])
def test_real_text_has_the_same_ids(vocabulary: int) -> None:
    file = DATA / "text" / "tinyshakespeare.txt"
    if not file.is_file():
        pytest.skip("the shared corpus is not there")
    text = file.read_text()
    ours = Tokenizer.from_bytes(train(text[:400_000].splitlines(), vocabulary))
    theirs = fast(ours)
    for at in range(400_000, 600_000, 5_000):
        part = text[at : at + 5_000]
        assert theirs.encode(part).ids == [ours.bos, *ours.encode(part)]
        assert theirs.decode(ours.encode(part)) == ours.decode(ours.encode(part)) == part


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
    ],
    ids=str,
)
def test_models_of_others_keep_their_ids(settings: dict[str, Any]) -> None:
    ours = other(**settings)
    theirs = fast(ours)
    texts = ["", " ", "the red", "  the  red \n ", "\n\n the", "naïve ﬁne ½ café 漢😀", "--- -- 12345", "aaaaaaa aa"]
    for text in texts:
        assert theirs.encode(text).ids == [ours.bos, *ours.encode(text)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model_type": "unigram", "vocab_size": 290}, "model type 1; expected 2, byte pairs"),
        ({"user_defined_symbols": ["<image>", "\n"]}, "1 user-defined pieces of several characters, .* '<image>'"),
    ],
)
def test_what_has_no_equal_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        tokenizer_json(other(**settings))
