"""Text to ids and back behind one contract: a sentencepiece model, ours by default, or a Hugging Face tokenizer.

A tokenizer is one bytes value that travels in corpora, model folders and checkpoints: a sentencepiece proto, or the
JSON of Hugging Face ``tokenizers`` with one more key (:mod:`mm1.data.hf_tokenizer`). The first character tells them
apart.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from mm1.data import hf_tokenizer, sentencepiece_tokenizer
from mm1.data.hf_tokenizer import HuggingFace, from_hf
from mm1.data.sentencepiece_tokenizer import BOS, EOS, PAD, UNK, SentencePiece, train
from mm1.errors import UserError
from mm1.sample import PICTURE, Text

__all__ = ["BOS", "EOS", "PAD", "UNK", "Codec", "Tokenizer", "find", "from_hf", "grow", "put", "train"]

FILES = ("tokenizer.model", "tokenizer.json")


class Codec(Protocol):
    """What both kinds can do: sizes and control ids as :class:`Tokenizer` has them."""

    vocabulary: int
    bos: int
    eos: int
    pad: int
    image: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; a ``ValueError`` where UTF-8 cannot spell it."""

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; control tokens say nothing."""


class Tokenizer:
    """A vocabulary of either kind.

    Args:
        path: ``tokenizer.model`` or ``tokenizer.json``.

    Attributes:
        proto: The file's bytes, as a checkpoint carries them.
        file_name: What the file is called in a folder.
        vocabulary: Number of ids.
        bos, eos, pad: Ids of the control tokens; ``pad`` is another token's where a model has none.
        image: Id of the token that stands for a picture in other formats, or None (:func:`grow`); no text becomes it.
        fingerprint: Names the vocabulary; equal where and only where ``proto`` is.

    Raises:
        UserError: The file is missing, is of neither kind, or lacks begin and end tokens.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            proto = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path} is not readable ({error.strerror}); expected a tokenizer") from None
        self._load(proto, str(path))

    @classmethod
    def from_bytes(cls, proto: bytes) -> Tokenizer:
        """The tokenizer that a checkpoint carries."""
        tokenizer = cls.__new__(cls)
        tokenizer._load(proto, "the tokenizer's bytes")
        return tokenizer

    def _load(self, proto: bytes, where: str) -> None:
        self._codec: Codec = HuggingFace(proto, where) if _is_json(proto) else SentencePiece(proto, where)
        self.proto = proto
        self.file_name = FILES[_is_json(proto)]
        self.vocabulary, self.image = self._codec.vocabulary, self._codec.image
        self.bos, self.eos, self.pad = self._codec.bos, self._codec.eos, self._codec.pad
        self._count = functools.lru_cache(maxsize=2048)(lambda text: len(self.encode(text)))
        self._spaces = self.decode(self.encode("a") + self.encode("b")) == "a b"
        self.fingerprint = hashlib.sha256(proto).hexdigest()[:16]

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return Tokenizer.from_bytes, (self.proto,)

    def spelling(self, item: Text) -> str:
        """What to encode of a text: the space before it is written out where the vocabulary would not put one."""
        return " " + item.text if item.after_space and not self._spaces else item.text

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without begin and end; what looks like a control token in it stays plain text.

        Raises:
            UserError: Half a surrogate pair stands in it, as bytes that are no UTF-8 leave it on a command line.
        """
        try:
            return self._codec.encode(text)
        except ValueError:
            raise UserError(f"{text!r:.60} is no Unicode text; expected one that UTF-8 can spell") from None

    def count(self, text: str) -> int:
        """Number of ids of ``text``, remembered for a while: cutting and measuring ask for the same text again."""
        return self._count(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; control tokens say nothing. Ids that end inside a character end in U+FFFD."""
        return self._codec.decode(list(ids))


def grow(proto: bytes, tokens: Sequence[str] = (PICTURE,)) -> bytes:
    """The tokenizer with control tokens added behind its last id; those that it has already keep their ids.

    ``<image>`` among them is :attr:`Tokenizer.image` from then on: other formats need a token there, our own batches
    have :data:`mm1.batch.IMAGE`.
    """
    return (hf_tokenizer.grown if _is_json(proto) else sentencepiece_tokenizer.grown)(proto, tokens)


def find(folder: Path) -> Path:
    """The tokenizer's file in a corpus or a model folder.

    Raises:
        UserError: There is none, or one of each kind.
    """
    there = [folder / name for name in FILES if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder} holds no {' or '.join(FILES)}; run mm1-data tokenizer with --out {folder} first")
    if len(there) > 1:
        raise UserError(f"{folder} holds {' and '.join(FILES)}; expected one: remove the one it was not written with")
    return there[0]


def put(folder: Path, proto: bytes) -> Tokenizer:
    """Write a tokenizer into a folder, in place of the one that is there."""
    tokenizer = Tokenizer.from_bytes(proto)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{tokenizer.file_name}.tmp"
    try:
        temporary.write_bytes(proto)
        for name in {*FILES} - {tokenizer.file_name}:
            (folder / name).unlink(missing_ok=True)
        os.replace(temporary, folder / tokenizer.file_name)
    finally:
        temporary.unlink(missing_ok=True)
    return tokenizer


def _is_json(proto: bytes) -> bool:
    return proto[:1] == b"{"  # a sentencepiece proto begins with a newline, the tag of its first piece
