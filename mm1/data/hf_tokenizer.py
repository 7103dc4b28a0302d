"""The only address of Hugging Face ``tokenizers``: vocabularies of published language models (Llama, Qwen, OLMo, ...).

The bytes are the model's own ``tokenizer.json`` with one more key that says what its neighbours in the folder say::

    {"model": ..., "added_tokens": [...], ..., "mm1": {"bos": 1, "eos": 2, "pad": 2, "image": null}}

so that one file is enough. Read are byte-level BPE (GPT-2, Llama 3, Qwen, OLMo, SmolLM) and BPE with byte fallback
(Llama 2, Mistral), which can spell any text. What comes back is the text as the tokenizer's normalizer leaves it: to
the letter in most, in Unicode's composed form (NFC) with Qwen. Bytes that a vocabulary lacks are lost (SmolLM2 has no
token for six control characters).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mm1.errors import UserError
from mm1.sample import PICTURE

KEY = "mm1"
ROLES = ("bos", "eos", "pad", "image")
FROM = ("tokenizer_config.json", "generation_config.json", "config.json")  # who may say which token begins and ends

PROBE = "Two  Words,\n3 é 漢 😀 "

Ids = dict[str, int | None]


class HuggingFace:
    """Such bytes as a :class:`mm1.data.tokenizer.Codec`.

    Args:
        proto: The JSON, with the key ``mm1``.
        where: Its origin, for errors.

    Raises:
        UserError: It is broken, of a kind that cannot spell any text, has holes, or lacks the key.
    """

    def __init__(self, proto: bytes, where: str) -> None:
        data = _object(proto, where)
        ids = data.pop(KEY, None)
        if not isinstance(ids, dict) or not {*ROLES} <= ids.keys():
            raise UserError(
                f"{where} does not say which tokens begin and end a text (key {KEY}); "
                f"expected a file that mm1-data tokenizer --take wrote from a model's folder"
            )
        self._tokenizer = _load(data, where)
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        self.bos, self.eos, self.pad = (_id(ids, role, self.vocabulary, where) for role in ROLES[:3])
        self.image: int | None = None if ids["image"] is None else _id(ids, "image", self.vocabulary, where)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; a ``ValueError`` where UTF-8 cannot spell it."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(str(error)) from None

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; special tokens say nothing."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def from_hf(path: str | Path) -> bytes:
    """The tokenizer of a model folder in Hugging Face layout as one bytes value.

    ``tokenizer_config.json`` names its tokens, else ``generation_config.json`` and ``config.json`` say their ids. A
    model without a begin token (Qwen) begins with the token that ends its documents.

    Args:
        path: The folder, or its ``tokenizer.json``; a file of ours comes back as it is.

    Raises:
        UserError: No such file, broken JSON, no end token to be found, or a vocabulary that is not ours to use.
    """
    path = Path(path)
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise UserError(f"{folder} holds no {file.name}; expected the tokenizer of a model in Hugging Face layout")
    proto = file.read_bytes()
    data = _object(proto, str(file))
    if KEY in data:
        HuggingFace(proto, str(file))
        return proto
    there = [folder / name for name in FROM if (folder / name).is_file()]
    says = {neighbour.name: _object(neighbour.read_bytes(), str(neighbour)) for neighbour in there}
    _load(data, str(file))
    _add(data, says.get(FROM[0], {}).get("added_tokens_decoder") or {}, str(folder / FROM[0]))
    vocabulary = _vocabulary(data)
    bos, eos, pad = (_said(role, says, vocabulary) for role in ROLES[:3])
    if eos is None:
        raise UserError(
            f"{folder} does not say which token ends a text; expected eos_token in {FROM[0]} (a token of {file.name}), "
            f"or eos_token_id in {FROM[1]} or {FROM[2]}"
        )
    ids = {"bos": eos if bos is None else bos, "eos": eos, "pad": eos if pad is None else pad, "image": None}
    _make_special(data, {at: name for name, at in vocabulary.items() if at in ids.values()})
    return _packed(data, ids, str(file))


def grown(proto: bytes, tokens: Sequence[str]) -> bytes:
    """The tokenizer with special tokens added behind its last id, those it has made special (``grow``)."""
    data = _object(proto, "the tokenizer")
    ids: Ids = data.pop(KEY)
    vocabulary = _vocabulary(data)
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    _make_special(data, {vocabulary[token]: token for token in tokens})
    image = vocabulary[PICTURE] if PICTURE in tokens else ids["image"]
    return _packed(data, {**ids, "image": image}, "the tokenizer")


def _packed(data: dict[str, Any], ids: Ids, where: str) -> bytes:
    proto = json.dumps({**data, KEY: ids}, ensure_ascii=False, separators=(",", ":")).encode()
    tokenizer = HuggingFace(proto, where)
    if (back := tokenizer.decode(tokenizer.encode(PROBE))) != PROBE:
        raise UserError(
            f"{where} does not give a text back: {PROBE!r} becomes {back!r}; expected a tokenizer that does"
        )
    return proto


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    """Ids by token, of a file that loads."""
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    return {**data["model"]["vocab"], **added}


def _object(proto: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(proto)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not readable as JSON ({error}); expected the file of a tokenizer") from None
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no JSON object; expected the file of a tokenizer")
    return data


def _load(data: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    """The tokenizer of plain text: nothing is cut, filled up or added, and no text becomes a special token."""
    model = data.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in (None, "BPE"):  # old files do not name their kind
        raise UserError(f"{where} has a model of type {kind}; expected byte-pair encoding (BPE)")
    byte_level = "ByteLevel" in [part.get("type") for part in _parts(data.get("pre_tokenizer"))]
    if not byte_level and not model.get("byte_fallback"):
        raise UserError(f"{where} cannot spell any text; expected byte-level BPE, or BPE with byte_fallback")
    plain = {"truncation": None, "padding": None, "post_processor": None, "model": {**model, "unk_token": None}}
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**data, **plain}))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where} is not readable as a tokenizer ({error}); expected a tokenizer.json") from None
    tokenizer.encode_special_tokens = True
    _check_ids(tokenizer, data, where)
    return tokenizer


def _check_ids(tokenizer: tokenizers.Tokenizer, data: dict[str, Any], where: str) -> None:
    """Every id has one token: the library closes holes silently, which would move every id behind them."""
    names = _vocabulary(data)
    if holes := set(range(len(names))) - set(names.values()):
        raise UserError(f"{where} has {len(names)} tokens, none with the id {min(holes)}; expected ids without holes")
    for token in data.get("added_tokens") or ():
        if (found := tokenizer.token_to_id(token["content"])) != token["id"]:
            raise UserError(
                f"{where} gives {token['content']!r} the id {token['id']} in added_tokens, where it is loaded as "
                f"{found}; expected one id for each token"
            )


def _parts(step: Any) -> Iterable[dict[str, Any]]:
    """A step of the pipeline and, of a sequence, those inside it."""
    if isinstance(step, dict):
        yield step
        inside = step.get("pretokenizers")
        for inner in inside if isinstance(inside, list) else ():
            yield from _parts(inner)


def _add(data: dict[str, Any], decoder: dict[str, Any], where: str) -> None:
    """Tokens that stand in ``tokenizer_config.json`` alone, as transformers adds them."""
    data["added_tokens"] = added = data.get("added_tokens") or []
    known = {token["content"] for token in added}
    try:
        tokens = [{**_token(int(at), token["content"]), "special": False, **token} for at, token in decoder.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{where} has added_tokens_decoder = {decoder!r:.60}; expected tokens by their ids") from None
    added += [token for token in tokens if token["content"] not in known]
    added.sort(key=lambda token: token["id"])


def _make_special(data: dict[str, Any], tokens: dict[int, str]) -> None:
    added = data["added_tokens"]
    there = {token["id"]: token for token in added}
    for at, name in tokens.items():
        if at in there:
            there[at]["special"] = True
        else:
            added.append(_token(at, name))
    added.sort(key=lambda token: token["id"])


def _token(at: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": at, "content": name, **flags, "special": True}


def _said(role: str, says: dict[str, dict[str, Any]], vocabulary: dict[str, int]) -> int | None:
    """The id of a role: the token named in ``tokenizer_config.json``, else the first id that a neighbour gives."""
    token = says.get(FROM[0], {}).get(f"{role}_token")
    name = token.get("content") if isinstance(token, dict) else token
    if isinstance(name, str) and name in vocabulary:
        return vocabulary[name]
    for file in FROM[1:]:
        ids = says.get(file, {}).get(f"{role}_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(first, int) and 0 <= first < len(vocabulary):
            return first
    return None


def _id(ids: Ids, role: str, vocabulary: int, where: str) -> int:
    found = ids[role]
    if not isinstance(found, int) or not 0 <= found < vocabulary:
        raise UserError(f"{where} has {KEY}.{role} = {found}; expected one of its {vocabulary} ids")
    return found
