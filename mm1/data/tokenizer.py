"""The only address of sentencepiece: text to ids and back, and training a vocabulary.

Byte-pair pieces with byte fallback over text as it is (identity normalisation), digits one by one, a newline always its
own token, so that any text survives the way there and back (Kudo and Richardson 2018; MM1's own vocabulary is
unpublished). One exception: U+2581, which sentencepiece uses for the space, comes back as a space.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from mm1.errors import UserError

PAD, BOS, EOS, UNK = range(4)


class Tokenizer:
    """A sentencepiece model, ours or one of another language model.

    Args:
        path: The ``.model`` file.

    Attributes:
        proto: The file's bytes, as a checkpoint carries them.
        vocabulary: Number of ids.
        bos, eos, pad: Ids of the control tokens; ``pad`` is the unknown token's where a model has none.
        fingerprint: Names the vocabulary; equal where and only where ``proto`` is.

    Raises:
        UserError: The file is missing, is no sentencepiece model, or lacks begin and end tokens.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            proto = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path} is not readable ({error.strerror}); expected a sentencepiece model") from None
        self._load(proto, str(path))

    @classmethod
    def from_bytes(cls, proto: bytes) -> Tokenizer:
        """The tokenizer that a checkpoint carries."""
        tokenizer = cls.__new__(cls)
        tokenizer._load(proto, "the tokenizer's bytes")
        return tokenizer

    def _load(self, proto: bytes, where: str) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto or b"\0")  # no bytes would pass
        except RuntimeError:
            raise UserError(f"{where} is no sentencepiece model; write one with mm1-data tokenizer") from None
        self.proto = proto
        self.vocabulary: int = self._pieces.get_piece_size()
        self.bos: int = self._pieces.bos_id()
        self.eos: int = self._pieces.eos_id()
        if min(self.bos, self.eos) < 0:
            raise UserError(f"{where} has begin id {self.bos} and end id {self.eos}; expected a model that has both")
        pad = self._pieces.pad_id()
        self.pad: int = pad if pad >= 0 else self._pieces.unk_id()
        self._count = functools.lru_cache(maxsize=2048)(lambda text: len(self.encode(text)))
        self.fingerprint = hashlib.sha256(proto).hexdigest()[:16]

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return Tokenizer.from_bytes, (self.proto,)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without begin and end; what looks like a control token in it stays plain text.

        Raises:
            UserError: Half a surrogate pair stands in it, as bytes that are no UTF-8 leave it on a command line.
        """
        try:
            return self._pieces.encode(text)
        except RuntimeError:
            raise UserError(f"{text!r:.60} is no Unicode text; expected one that UTF-8 can spell") from None

    def count(self, text: str) -> int:
        """Number of ids of ``text``, remembered for a while: cutting and measuring ask for the same text again."""
        return self._count(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; control tokens say nothing."""
        return self._pieces.decode(list(ids))


def train(lines: Iterable[str], vocabulary: int) -> bytes:
    """Train a vocabulary; the same lines in the same order give the same bytes.

    Args:
        lines: Text without newlines, one stretch each.
        vocabulary: Number of ids, with 4 control tokens, the newline and 256 bytes among them.

    Returns:
        The model's bytes, for :meth:`Tokenizer.from_bytes` or a file.

    Raises:
        UserError: There is no text, or it cannot fill the vocabulary (with the largest size that it fills), or the
            vocabulary cannot hold the text's characters (with the smallest size that does).
    """
    if not 0 < vocabulary < 1 << 24:
        raise UserError(f"vocabulary is {vocabulary}; expected a number of ids such as 2048 or 32000")
    proto = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The trainer skips lines with tabs, which it uses itself; at encoding a tab is its byte.
            sentence_iterator=(line.replace("\t", " ") for line in lines),
            model_writer=proto,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            required_chars="0123456789",
            user_defined_symbols=["\n"],
            max_sentence_length=1 << 20,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_reason(str(error), vocabulary)) from None
    return proto.getvalue()


def _reason(message: str, vocabulary: int) -> str:
    if largest := re.search(r"value <= (\d+)", message):
        limit = largest[1]
        return f"this text fills at most {limit} ids, not {vocabulary}: set vocabulary to {limit} or less"
    if smallest := re.search(r"required_chars\. \d+ vs (\d+)", message):
        limit = smallest[1]
        return (
            f"the characters of this text alone take {limit} ids, not {vocabulary}: set vocabulary to {limit} or more"
        )
    if "sentences_.empty" in message:
        return "there is no text to train a tokenizer on; expected a corpus folder with captions, documents or text"
    return f"sentencepiece cannot train a vocabulary of {vocabulary}: {message}"
