"""Chats as strings and back, and turns with pictures inside: the same items that training data becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources.turns import Turn, conversation
from eval.adapters.answers import Wanted
from eval.adapters.texts import BEGIN, END, chat, ids, items
from eval.turns import asked
from mm1.data.encode import encode
from mm1.data.tokenizer import Tokenizer, from_hf
from mm1.errors import UserError
from mm1.infer.decoding import Decoding
from mm1.sample import Image, Sample, Text
from mm1.template import answer, system, turn
from tests.mm1.data.hf_folders import write

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "what colour?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "and this?"},
]
ITEMS = (system("Be brief."), *turn("what colour?", "red"), *turn("and this?"))


@pytest.fixture(scope="module", params=["sentencepiece", "gpt2"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Tokenizer:
    if request.param == "sentencepiece":
        return tokenizer
    return Tokenizer.from_bytes(from_hf(write("gpt2", tmp_path_factory.mktemp("gpt2"))))


def test_a_chat_comes_back_as_the_ids_of_its_document(codec: Tokenizer) -> None:
    string = chat(SAID)
    whole = encode(Sample((*ITEMS, answer("green")), "sft", "0"), codec, 1).tokens.tolist()
    assert [codec.bos, *ids(string + " green", codec), codec.eos] == whole
    assert [codec.bos, *ids(string + "green", codec), codec.eos] == whole, "with the harness's blank or without"
    assert ids(string, codec) == whole[1 : 1 + len(ids(string, codec))], "the chat alone is how the whole begins"


def test_the_last_answer_may_be_begun_or_closed() -> None:
    begun = [*SAID, {"role": "assistant", "content": "it is"}]
    assert items(chat(begun))[-1] == Text("it is", after_space=True)
    assert items(chat([*begun, SAID[-1]]))[-2] == answer("it is")
    assert items(f"t is red{END}User: and?\nAssistant:{BEGIN}")[0] == answer("t is red"), "its question was cut away"
    with pytest.raises(UserError, match="role 'tool'"):
        chat([{"role": "tool", "content": "42"}])


def test_text_without_marks_is_one_text() -> None:
    assert items("  a text \n") == [Text("  a text \n")]
    assert items("") == []
    assert items(chat([{"role": "user", "content": f"a{BEGIN}b{END}"}])) == list(turn("ab"))


PARTS = st.lists(st.sampled_from(["one", " two\n", "", "  ", Path("a"), Path("b")]), min_size=1, max_size=6)


@given(PARTS)
def test_turns_with_pictures_are_spelled_as_training_spells_them(parts: list) -> None:
    """Against the reader of instruction data, which takes texts with a picture between each two of them."""
    texts, pictures = [""], []
    for part in parts:
        if isinstance(part, Path):
            pictures.append(part)
            texts.append("")
        else:
            texts[-1] = "\n".join(text for text in (texts[-1].strip(), part.strip()) if text)
    shown = [Image(part.name.encode()) if isinstance(part, Path) else part for part in parts]
    if not any(text.strip() for text in texts):
        assert [item for item in asked(shown) if isinstance(item, Image)] == [Image(p.name.encode()) for p in pictures]
        return
    trained = conversation([Turn("user", tuple(texts)), Turn("assistant", ("yes",))], pictures)[:-1]
    assert asked(shown) == [Image(item.name.encode()) if isinstance(item, Path) else item for item in trained]


def test_what_a_harness_wants_of_an_answer() -> None:
    assert Wanted.of({"until": "\n"}) == Wanted(256, ("\n",))
    assert Wanted.of({"until": ["a", ""], "max_new_tokens": 16, "num_beams": 1, "temperature": 0}) == Wanted(16, ("a",))
    assert Wanted.of({"until": None, "do_sample": True, "temperature": 0.0}) == Wanted(256, ())
    assert Wanted.of({"do_sample": False, "temperature": 0.7, "top_p": 0.9}) == Wanted(256, ())
    assert Wanted.of({"num_beams": 3}).decoding == Decoding(beams=3)
    drawn = Wanted.of({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_gen_toks": 5})
    assert drawn == Wanted(5, (), Decoding(temperature=0.7, top_p=0.9, top_k=50))
    assert Wanted.of({"do_sample": True}).decoding == Decoding(temperature=1.0)
