"""A published model's tokenizer keeps the contract of ours: any text survives, and no text becomes a special token."""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mm1.data.encode import encode, text_tokens
from mm1.data.tokenizer import Tokenizer, find, from_hf, grow, put, train
from mm1.errors import UserError
from mm1.sample import Sample
from mm1.template import turn
from tests.mm1.data.hf_folders import KINDS, write

SPECIAL = ["<|endoftext|>", "<|begin|>", "<|end|>", "<|im_end|>", "<unk>", "<s>", "</s>", "<image>", "<0x0A>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One of every kind, with an image token."""
    folder = tmp_path_factory.mktemp("hf")
    return {kind: Tokenizer.from_bytes(grow(from_hf(write(kind, folder / kind)))) for kind in KINDS}


def what_is_read(kind: str, text: str) -> str:
    """What the tokenizers' own pipelines leave of a text before there are ids."""
    if kind == "qwen":
        return unicodedata.normalize("NFC", text)
    if kind in ("llama2", "mistral"):
        text = text.replace("▁", " ")  # their sign for a space
    return text.removeprefix(" ") if kind == "mistral" else text  # "a" and " a" have the same ids there


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text() | st.lists(st.sampled_from([*SPECIAL, " ", "\n", "red", "😀", "漢", "\x00"])).map("".join))
def test_any_text_comes_back_and_none_is_special(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = made[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == what_is_read(kind, text)
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.image} & set(ids)
    assert tokenizer.count(text) == len(ids)


@pytest.mark.parametrize("kind", [*KINDS, "ours"])
def test_an_answer_begins_as_a_word_in_every_kind_of_vocabulary(made: dict[str, Tokenizer], kind: str) -> None:
    ours = train(["User: what ? Assistant: red"] * 20, 310)
    tokenizer = Tokenizer.from_bytes(ours) if kind == "ours" else made[kind]
    items = (*turn("what ?", "red"), *turn("what ?", "red"))
    ids = encode(Sample(items, "sft", "1"), tokenizer, 2).tokens.tolist()
    assert len(ids) == text_tokens(items, tokenizer)
    alone = tokenizer.encode(" red" if tokenizer.decode(tokenizer.encode("a") * 2) == "aa" else "red")
    assert ids[-len(alone) - 1 :] == [*alone, tokenizer.eos]
    assert tokenizer.decode(ids).count("Assistant: red") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_say_nothing(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    assert tokenizer.image == tokenizer.vocabulary - 1
    assert (
        tokenizer.decode([tokenizer.bos, *tokenizer.encode("a red one"), tokenizer.image, tokenizer.eos]) == "a red one"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_named(made: dict[str, Tokenizer], kind: str) -> None:
    with pytest.raises(UserError, match="is no Unicode text"):
        made[kind].encode("a\ud83d")


@pytest.mark.parametrize(
    ("kind", "bos", "eos", "pad"),
    [
        ("gpt2", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ("llama3", "<|begin|>", "<|end|>", "<|end|>"),
        ("qwen", "<|endoftext|>", "<|im_end|>", "<|endoftext|>"),
        ("llama2", "<s>", "</s>", "</s>"),
        ("mistral", "<s>", "</s>", "</s>"),
    ],
)
def test_the_folder_says_how_texts_begin_and_end(tmp_path: Path, kind: str, bos: str, eos: str, pad: str) -> None:
    tokenizer = Tokenizer.from_bytes(from_hf(write(kind, tmp_path)))
    ids = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (ids(bos), ids(eos), ids(pad))
    assert tokenizer.image is None


def test_a_model_without_a_begin_token_begins_with_its_end_token(tmp_path: Path) -> None:
    (write("qwen", tmp_path) / "config.json").unlink()
    tokenizer = Tokenizer.from_bytes(from_hf(tmp_path))
    assert tokenizer.bos == tokenizer.eos


def test_tokens_that_only_the_configuration_names_are_there(tmp_path: Path) -> None:
    size = Tokenizer.from_bytes(from_hf(write("llama3", tmp_path))).vocabulary
    path = tmp_path / "tokenizer_config.json"
    late = {str(size): {"content": "<|late|>", "special": True}, "0": {"content": "!", "special": False}}
    path.write_text(json.dumps({"eos_token": "<|late|>", "added_tokens_decoder": late}))
    tokenizer = Tokenizer.from_bytes(from_hf(tmp_path))
    assert (tokenizer.vocabulary, tokenizer.eos) == (size + 1, size)


def test_what_could_not_be_put_leaves_nothing(made: dict[str, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        put(tmp_path, made["gpt2"].proto)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_bytes_file_and_pickle_are_the_same_tokenizer(made: dict[str, Tokenizer], tmp_path: Path) -> None:
    first = made["qwen"]
    assert put(tmp_path, first.proto).file_name == "tokenizer.json"
    for other in (Tokenizer(find(tmp_path)), pickle.loads(pickle.dumps(first))):
        assert (other.proto, other.fingerprint) == (first.proto, first.fingerprint)
        assert other.encode("red circle\n") == first.encode("red circle\n")
    assert from_hf(tmp_path) == first.proto
    assert made["llama3"].fingerprint != first.fingerprint


def test_growing_adds_behind_the_last_id_and_once(tmp_path: Path) -> None:
    for proto in (from_hf(write("gpt2", tmp_path)), train(["The red circle."], 282)):
        before, grown = Tokenizer.from_bytes(proto), grow(proto, ["<image>", "<row>"])
        after = Tokenizer.from_bytes(grown)
        assert (before.image, after.image) == (None, before.vocabulary)
        assert after.vocabulary == before.vocabulary + 2
        assert after.encode("<image> red<row>") == before.encode("<image> red<row>")
        assert after.decode([after.image, *after.encode("red"), after.image + 1]) == "red"
        assert (after.bos, after.eos, after.pad) == (before.bos, before.eos, before.pad)
        assert grow(grown, ["<image>", "<row>"]) == grown


def test_a_folder_holds_one_tokenizer(made: dict[str, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.model or tokenizer\.json; run mm1-data tokenizer"):
        find(tmp_path)
    ours = train(["The red circle."], 282)
    put(tmp_path, made["gpt2"].proto)
    put(tmp_path, ours)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    (tmp_path / "tokenizer.json").write_bytes(made["gpt2"].proto)
    with pytest.raises(UserError, match=r"holds tokenizer\.model and tokenizer\.json; expected one"):
        find(tmp_path)


def _no_end(data: dict[str, Any]) -> None:
    data["added_tokens"].pop()


def _hole(data: dict[str, Any]) -> None:
    data["added_tokens"][-1]["id"] += 3


def _hole_at_the_start(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    del vocabulary[next(name for name, at in vocabulary.items() if at == 0)]


def _one_id_twice(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["once more"] = 0


def _two_ids(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    vocabulary["<|begin|>"] = 5


def _words(data: dict[str, Any]) -> None:
    data["model"] = {"type": "WordLevel", "vocab": {"red": 0}, "unk_token": "red"}


def _no_bytes(data: dict[str, Any]) -> None:
    data["pre_tokenizer"] = {"type": "Whitespace"}


def _lower_case(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Lowercase"}


def _no_decoder(data: dict[str, Any]) -> None:
    data["decoder"] = None


def _no_merges(data: dict[str, Any]) -> None:
    del data["model"]["merges"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_end, r"does not say which token ends a text; expected eos_token in tokenizer_config\.json"),
        (_hole, r"tokenizer\.json has 332 tokens, none with the id 331; expected ids without holes"),
        (_hole_at_the_start, r"tokenizer\.json has 331 tokens, none with the id 0; expected ids without holes"),
        (_one_id_twice, r"tokenizer\.json has 333 tokens, none with the id 332; expected ids without holes"),
        (_two_ids, r"gives '<\|begin\|>' the id 330 in added_tokens, where it is loaded as 5; expected one id"),
        (_words, r"has a model of type WordLevel; expected byte-pair encoding"),
        (_no_bytes, r"cannot spell any text; expected byte-level BPE, or BPE with byte_fallback"),
        (_lower_case, r"does not give a text back"),
        (_no_decoder, r"does not give a text back"),
        (_no_merges, r"is not readable as a tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = write("llama3", tmp_path) / "tokenizer.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=told):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", None, r"holds no tokenizer\.json; expected the tokenizer of a model in Hugging Face layout"),
        ("tokenizer.json", "{", r"tokenizer\.json is not readable as JSON"),
        ("tokenizer.json", "[1]", r"tokenizer\.json holds no JSON object"),
        ("tokenizer.json", "{}", r"tokenizer\.json has a model of type None"),
        ("tokenizer.json", b"\xff\xfe{", r"tokenizer\.json is not readable as JSON"),
        ("tokenizer_config.json", "{'", r"tokenizer_config\.json is not readable as JSON"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": 1}}',
            r"tokenizer_config\.json .*added_tokens_decoder",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes | None, told: str) -> None:
    path = write("llama3", tmp_path) / name
    path.unlink()
    if content:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=told):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (None, r"does not say which tokens begin and end a text \(key mm1\); expected a file that .* --take wrote"),
        ({"bos": 0}, r"does not say which tokens begin and end"),
        ({"bos": 0, "eos": 9999, "pad": 0, "image": None}, r"has mm1\.eos = 9999; expected one of its 332 ids"),
    ],
)
def test_a_file_without_its_ids_is_named(tmp_path: Path, ids: dict[str, int] | None, told: str) -> None:
    path = write("llama3", tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **({"mm1": ids} if ids else {})}))
    with pytest.raises(UserError, match=told):
        Tokenizer(path)
