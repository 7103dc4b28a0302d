"""A sentencepiece vocabulary as the ``tokenizer.json`` that transformers reads, with the same ids for the same text.

Both libraries merge the pair that makes the piece of the highest score. One difference is known and meant: the names of
control tokens (``</s>``) stay plain text in our own :class:`Tokenizer` and become the tokens in transformers.

The file is read by its published description (sentencepiece_model.proto), of which a few fields are needed.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError

SPACE = "\u2581"  # how sentencepiece writes a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary: its text, its score (the highest is merged first), and which of the kinds it is."""

    text: str
    score: float
    kind: int


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of ``tokenizer.json`` of a sentencepiece tokenizer; every text begins with the begin token.

    Raises:
        UserError: It is no byte-pair encoding, or has pieces of several characters that are never cut.
    """
    model = list(_fields(tokenizer.proto))
    pieces = [_piece(value) for number, value in model if number == 1]
    trainer, normalizer = (_message(model, number) for number in (2, 3))
    if trainer.get(3, 1) != BPE:
        raise UserError(f"the sentencepiece tokenizer has model type {trainer.get(3, 1)}; expected {BPE}, byte pairs")
    if fixed := [p.text for p in pieces if p.kind == USER_DEFINED and len(p.text) > 1]:
        raise UserError(
            f"the tokenizer has {len(fixed)} user-defined pieces of several characters, the first: {fixed[0]!r}; "
            f"tokenizer.json has no way to say so: expected none"
        )
    begin = {"id": pieces[tokenizer.bos].text, "type_id": 0}
    special = {"id": begin["id"], "ids": [tokenizer.bos], "tokens": [begin["id"]]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(at, p.text) for at, p in enumerate(pieces) if p.kind in (UNKNOWN, CONTROL)],
        "normalizer": _normalizer(normalizer),
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": begin}, *({"Sequence": {"id": text, "type_id": 0}} for text in "AB")],
            "special_tokens": {begin["id"]: special},
        },
        "decoder": _decoder(normalizer),
        "model": _model(pieces, bool(trainer.get(35, 0))),
    }


def _model(pieces: list[Piece], byte_fallback: bool) -> dict[str, Any]:
    unknown = next((p.text for p in pieces if p.kind == UNKNOWN), None)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {p.text: at for at, p in enumerate(pieces)},
        "merges": _merges(pieces),
    }


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, those of the highest score first."""
    ids = {p.text: at for at, p in enumerate(pieces) if p.kind == NORMAL}
    found = [
        (-p.score, ids[p.text[:cut]], ids[p.text[cut:]], p.text[:cut], p.text[cut:])
        for p in pieces
        if p.kind == NORMAL
        for cut in range(1, len(p.text))
        if p.text[:cut] in ids and p.text[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(said: dict[int, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if charsmap := said.get(2):
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if said.get(4, 1):  # remove_extra_whitespaces
        cuts = {r"\A +| +\z": "", " {2,}": " "}
        steps += [{"type": "Replace", "pattern": {"Regex": cut}, "content": left} for cut, left in cuts.items()]
    if said.get(3, 1):  # add_dummy_prefix
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(said: dict[int, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if said.get(3, 1):
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def added_token(at: int, text: str) -> dict[str, Any]:
    """How ``tokenizer.json`` writes a special token."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": at, "content": text, **flags, "special": True}


def _piece(message: bytes) -> Piece:
    said = dict(_fields(message))
    return Piece(said[1].decode(), struct.unpack("<f", said.get(2, bytes(4)))[0], said.get(3, NORMAL))


def _message(model: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    """The fields of an inner message, the last of each."""
    return {name: value for at, message in model if at == number for name, value in _fields(message)}


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: an int, or bytes of what has a length or is a float."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
                continue
            case 2:
                length, at = _varint(message, at)
            case wire:
                length = {1: 8, 5: 4}[wire]
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
