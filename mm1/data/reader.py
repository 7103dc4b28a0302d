"""From a plan to tensors: documents are read, tokenized and prepared in a few threads, and laid out in rows.

A document that is damaged leaves its positions as padding, so that everybody still agrees on every row; the batch says
which it was and why.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mm1.batch import Batch, check_placeholders
from mm1.data.encode import Encoded, encode
from mm1.data.image import PictureError, decode, prepare_into, room, square
from mm1.data.pack import Piece, to_batch
from mm1.data.recipe import Recipe
from mm1.data.shards import Damaged, ShardSet
from mm1.data.tokenizer import Tokenizer, find
from mm1.sample import Sample

GREY = 127


class Reader:
    """Fetches what a plan names.

    Args:
        recipe: What is read.
        shards: The shards of every source.
        threads: Threads that prepare documents.
        vary: Whether pictures vary as ``recipe.augment`` says.
    """

    def __init__(self, recipe: Recipe, shards: Sequence[ShardSet], threads: int, *, vary: bool) -> None:
        self.recipe, self.shards = recipe, shards
        self.tokenizer = Tokenizer(find(recipe.corpus))
        self.augment = recipe.augment if vary else None
        self.pool = ThreadPoolExecutor(max_workers=max(1, threads))

    def batch(self, rows: Sequence[Sequence[Piece]]) -> Batch:
        """The batch of these rows."""
        pieces = [piece for row in rows for piece in row]
        images_ICHW = room(sum(piece.images for piece in pieces), self.recipe.image_spec.size_px)
        places = images_ICHW.split([piece.images for piece in pieces])
        fetched = list(self.pool.map(self._prepare, pieces, map(self._read, pieces), places))
        damaged = [(piece, reason) for piece, (_, reason) in zip(pieces, fetched, strict=True) if reason]
        if damaged:
            kept = [place for place, (_, reason) in zip(places, fetched, strict=True) if not reason]
            images_ICHW = torch.cat([images_ICHW[:0], *kept])
        documents = iter([document for document, _ in fetched])
        laid = [list(itertools.islice(documents, len(row))) for row in rows]
        batch = to_batch(laid, images_ICHW, self.recipe.row_tokens, self.recipe.names)
        batch.damaged = tuple(
            (self.recipe.names[piece.source], self._where(piece), reason) for piece, reason in damaged
        )
        check_placeholders(batch, self.recipe.image_spec.tokens)  # here: an accelerator cannot tell
        return batch

    def _where(self, piece: Piece) -> str:
        return f"{self.shards[piece.source].path(piece.index)}, sample {piece.index} of the stream"

    def _read(self, piece: Piece) -> Sample | str:
        try:
            return self.shards[piece.source][piece.index]
        except Damaged as error:
            return error.reason
        except OSError as error:
            return f"shard cannot be read ({error.strerror})"

    def _prepare(
        self, piece: Piece, sample: Sample | str, into_ICHW: Tensor
    ) -> tuple[tuple[int, str, Encoded | int], str]:
        """The document with its pictures in place, or its positions and what is wrong with it."""
        lost = piece.source, "", piece.positions
        if isinstance(sample, str):
            return lost, sample
        document = encode(sample, self.tokenizer, self.recipe.image_spec.tokens)
        if len(document.tokens) != piece.positions or len(document.images) != piece.images:
            return lost, "not as long as its index says; the tokenizer or the shards were changed"
        try:
            for number, (data, into_CSS) in enumerate(zip(document.images, into_ICHW, strict=True)):
                self._picture(into_CSS, data, piece, number)
        except PictureError as error:
            return lost, str(error)
        return (piece.source, f"{self.recipe.names[piece.source]}/{sample.id}", document), ""

    def _picture(self, into_CSS: Tensor, data: bytes, piece: Piece, number: int) -> None:
        if self.recipe.blank:
            into_CSS.fill_(GREY)
        elif self.augment is None:
            prepare_into(into_CSS, data, self.recipe.image_spec)
        else:
            stream = self.recipe.names[piece.source]
            picked = f"{self.recipe.seed}/{stream}/{piece.epoch}/{piece.index}/{number}"
            into_CSS.copy_(square(self.augment(decode(data), stream, picked), self.recipe.image_spec))
