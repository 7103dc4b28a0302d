"""From a plan to tensors: documents are read, tokenized and prepared in a few threads, and laid out in rows.

A document that is damaged leaves its positions as padding, so that everybody still agrees on every row; the batch says
which it was and why.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy

from mm1.batch import Batch, check_placeholders
from mm1.data.encode import Encoded, encode
from mm1.data.image import PictureError, channels_first, decode, prepare_into, room, square
from mm1.data.pack import Piece, to_batch
from mm1.data.recipe import Recipe
from mm1.data.shards import Damaged, ShardSet
from mm1.data.tokenizer import Tokenizer, find

GREY = 127


class Reader:
    """Fetches what a plan names.

    Args:
        recipe: What is read.
        shards: The shards of every source.
        threads: Threads that prepare pictures.
        vary: Whether pictures vary as ``recipe.augment`` says.
    """

    def __init__(self, recipe: Recipe, shards: Sequence[ShardSet], threads: int, *, vary: bool) -> None:
        self.recipe, self.shards, self.names = recipe, shards, recipe.names
        self.tokenizer = Tokenizer(find(recipe.corpus))
        self.augment = recipe.augment if vary else None
        self.map = ThreadPoolExecutor(threads).map if threads > 1 else map  # decoders run beside each other

    def batch(self, rows: Sequence[Sequence[Piece]], memory: numpy.ndarray | None = None) -> Batch:
        """The batch of these rows, its pictures in ``memory`` (:func:`mm1.data.image.room`) if that is given."""
        pieces = [piece for row in rows for piece in row]
        read = [self._read(piece) for piece in pieces]  # all before any picture, as decoding empties the caches
        ends = list(itertools.accumulate(piece.images for piece in pieces))
        images_ISSC = room(ends[-1] if ends else 0, self.recipe.image_spec.size_px, memory)
        places = [images_ISSC[end - piece.images : end] for piece, end in zip(pieces, ends, strict=True)]
        fetched = list(self.map(self._prepare, pieces, read, places))
        damaged = [(piece, reason) for piece, (_, reason) in zip(pieces, fetched, strict=True) if reason]
        if damaged:
            kept = [place for place, (_, reason) in zip(places, fetched, strict=True) if not reason]
            images_ISSC = numpy.concatenate([images_ISSC[:0], *kept])
        documents = iter([document for document, _ in fetched])
        laid = [list(itertools.islice(documents, len(row))) for row in rows]
        batch = to_batch(laid, channels_first(images_ISSC), self.recipe.row_tokens, self.names)
        batch.damaged = tuple((self.names[piece.source], self._where(piece), reason) for piece, reason in damaged)
        check_placeholders(batch, self.recipe.image_spec.tokens)  # here: an accelerator cannot tell
        return batch

    def _where(self, piece: Piece) -> str:
        return f"{self.shards[piece.source].path(piece.index)}, sample {piece.index} of the stream"

    def _read(self, piece: Piece) -> tuple[str, Encoded] | str:
        """Name and encoding of a document, or what is wrong with it."""
        try:
            sample = self.shards[piece.source][piece.index]
        except Damaged as error:
            return error.reason
        except OSError as error:
            return f"shard cannot be read ({error.strerror})"
        document = encode(sample, self.tokenizer, self.recipe.image_spec.tokens)
        if len(document.tokens) != piece.positions or len(document.images) != piece.images:
            return "not as long as its index says; the tokenizer or the shards were changed"
        return f"{self.names[piece.source]}/{sample.id}", document

    def _prepare(
        self, piece: Piece, read: tuple[str, Encoded] | str, into_ISSC: numpy.ndarray
    ) -> tuple[tuple[int, str, Encoded | int], str]:
        """The document with its pictures in place, or its positions and what is wrong with it."""
        lost = piece.source, "", piece.positions
        if isinstance(read, str):
            return lost, read
        name, document = read
        try:
            for number, (image, into_SSC) in enumerate(zip(document.images, into_ISSC, strict=True)):
                self._picture(into_SSC, image.data, piece, number)
        except PictureError as error:
            return lost, str(error)
        return (piece.source, name, document), ""

    def _picture(self, into_SSC: numpy.ndarray, data: bytes, piece: Piece, number: int) -> None:
        if self.recipe.blank:
            into_SSC.fill(GREY)
        elif self.augment is None:
            prepare_into(into_SSC, data, self.recipe.image_spec)
        else:
            stream = self.names[piece.source]
            picked = f"{self.recipe.seed}/{stream}/{piece.epoch}/{piece.index}/{number}"
            picture_CSS = square(self.augment(decode(data), stream, picked), self.recipe.image_spec)
            into_SSC[:] = picture_CSS.permute(1, 2, 0).numpy()
