"""The only address of sentencepiece: our own default vocabulary, its training, and models of other projects.

Byte-pair pieces with byte fallback over text as it is (identity normalisation), digits one by one, a newline always its
own token, so that any text survives the way there and back (Kudo and Richardson 2018; MM1's own vocabulary is
unpublished). One exception: U+2581, which sentencepiece uses for the space, comes back as a space.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Sequence

import sentencepiece

from mm1.errors import UserError
from mm1.sample import PICTURE

PAD, BOS, EOS, UNK = range(4)


class SentencePiece:
    """A sentencepiece model, ours or one of another language model, as :class:`mm1.data.tokenizer.Codec`.

    Args:
        proto: The model's bytes.
        where: Their origin, for errors.

    Raises:
        UserError: They are no sentencepiece model, or one without begin and end tokens.
    """

    def __init__(self, proto: bytes, where: str) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto or b"\0")  # no bytes would pass
        except RuntimeError:
            raise UserError(
                f"{where} is neither a sentencepiece model nor the JSON of a Hugging Face tokenizer; "
                f"write one with mm1-data tokenizer"
            ) from None
        self.vocabulary: int = self._pieces.get_piece_size()
        self.bos: int = self._pieces.bos_id()
        self.eos: int = self._pieces.eos_id()
        if min(self.bos, self.eos) < 0:
            raise UserError(f"{where} has begin id {self.bos} and end id {self.eos}; expected a model that has both")
        pad = self._pieces.pad_id()
        self.pad: int = pad if pad >= 0 else self._pieces.unk_id()
        picture = self._pieces.piece_to_id(PICTURE)
        self.image: int | None = picture if self._pieces.is_control(picture) else None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; a ``ValueError`` where UTF-8 cannot spell it."""
        try:
            return self._pieces.encode(text)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; control tokens say nothing."""
        return self._pieces.decode(ids)


def grown(proto: bytes, tokens: Sequence[str]) -> bytes:
    """The model with control tokens added at its end, those it has already left out.

    Bytes of the same protobuf message that follow each other are one message, its lists joined.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    new = [token for token in dict.fromkeys(tokens) if pieces.id_to_piece(pieces.piece_to_id(token)) != token]
    return proto + b"".join(_control(token) for token in new)


def _control(token: str) -> bytes:
    """``pieces { piece: token, score: 0, type: CONTROL }`` of sentencepiece_model.proto; ``token`` under 100 bytes."""
    name = token.encode()
    piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x03"
    return b"\x0a" + bytes([len(piece)]) + piece


def train(lines: Iterable[str], vocabulary: int) -> bytes:
    """Train a vocabulary; the same lines in the same order give the same bytes.

    Args:
        lines: Text without newlines, one stretch each.
        vocabulary: Number of ids, with 4 control tokens, the newline and 256 bytes among them.

    Returns:
        The model's bytes, for :meth:`mm1.data.tokenizer.Tokenizer.from_bytes` or a file.

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
