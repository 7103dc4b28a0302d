"""The endless sequence of global batches, a function of configuration and seed alone (MM1, section 3.3).

    1. Every source is read through again and again, each epoch in another seeded order.
    2. One mixture draws from these sequences and one packer lays rows out of what was drawn; the next S rows are a
       global batch. As there is one account and one look-ahead buffer for all rows, the shares hold for the run as a
       whole, however many rows a batch has.
    3. Every rank plans all rows (two numbers a document, no text, no pixels) and fetches only its own: micro-batch a of
       A on rank r of R, with m = S / (R A) rows, is the rows ``[(a R + r) m, (a R + r) m + m)`` of the batch.

Hence any split of a batch over ranks, micro-batches and workers gives the same rows, and the state after a batch is
small, readable, and the same for all of them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mm1.batch import Batch, ImageSpec, check_placeholders
from mm1.data.augment import Augment
from mm1.data.encode import Encoded, encode
from mm1.data.image import PictureError, decode, square
from mm1.data.mixture import DEFAULT_WEIGHTS, Unit, amount, furthest_behind, shares_of
from mm1.data.pack import Piece, next_row, to_batch
from mm1.data.shards import DAMAGED, ShardSet
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError
from mm1.sample import Sample

GREY = 127


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what the global batches are.

    Args:
        corpus: Folder of shards.
        image_spec: How pictures are prepared, and how many positions each takes.
        weights: Share of each source, in ``unit``; they need not sum to anything.
        unit: What the weights count.
        row_tokens: Positions of a row.
        images_per_row: Most pictures of a row.
        rows_per_step: Rows of a global batch.
        seed: Decides the order of documents.
        look_ahead: Documents that wait to be packed; more of them fill rows better, and the realised mix lags further.
        augment: How training pictures vary from epoch to epoch; None leaves them as they are.
        blank: Whether every picture is replaced by a grey one, to train what answers without looking.
    """

    corpus: Path
    image_spec: ImageSpec
    row_tokens: int
    rows_per_step: int
    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    unit: Unit = "positions"
    images_per_row: int = 16
    seed: int = 0
    look_ahead: int = 16
    augment: Augment | None = None
    blank: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source that is read at all."""
        return shares_of(self.weights)


class Source:
    """The training documents of one source as an endless sequence: epoch after epoch, each in its own order."""

    def __init__(self, number: int, shards: ShardSet, recipe: Recipe) -> None:
        self.number, self.shards, self.recipe = number, shards, recipe
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        name = list(self.recipe.shares)[self.number]
        return np.random.default_rng([self.recipe.seed, zlib.crc32(name.encode()), epoch]).permutation(len(self.shards))

    def at(self, place: int) -> Piece:
        """The document at ``place`` of the endless sequence."""
        epoch, within = divmod(place, len(self.shards))
        return self.piece(epoch, int(self._order(epoch)[within]))

    def piece(self, epoch: int, index: int) -> Piece:
        """A document by its index, with its sizes."""
        text_tokens, images = self.shards.sizes(index)
        positions = amount("positions", text_tokens, images, self.recipe.image_spec.tokens)
        return Piece(self.number, epoch, index, positions, images)


class Plan:
    """What every global batch consists of, without reading any document."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.shares = list(recipe.shares.values())
        self.sources = [
            Source(number, ShardSet(recipe.corpus, name, "train"), recipe) for number, name in enumerate(recipe.shares)
        ]
        check_sources(self.sources, recipe)
        self.taken = [0] * len(self.sources)
        self.booked = [0] * len(self.sources)
        self.buffer: list[Piece] = []

    def next_step(self) -> list[list[Piece]]:
        """The rows of the next global batch."""
        recipe = self.recipe
        limits = recipe.look_ahead, recipe.row_tokens, recipe.images_per_row
        return [next_row(self.buffer, self._draw, *limits) for _ in range(recipe.rows_per_step)]

    def _draw(self) -> Piece:
        """The next document of the mixture."""
        chosen = furthest_behind(self.shares, self.booked)
        piece = self.sources[chosen].at(self.taken[chosen])
        tokens_per_image = self.recipe.image_spec.tokens
        text_tokens = piece.positions - piece.images * tokens_per_image
        self.taken[chosen] += 1
        self.booked[chosen] += amount(self.recipe.unit, text_tokens, piece.images, tokens_per_image)
        return piece

    def epochs(self) -> dict[str, float]:
        """How often each source has been drawn through, by name."""
        return {name: self.taken[i] / len(self.sources[i].shards) for i, name in enumerate(self.recipe.shares)}

    def state(self) -> dict[str, Any]:
        """The state after the rows planned so far, plain values only."""
        waiting = [[piece.source, piece.epoch, piece.index] for piece in self.buffer]
        place = {"taken": list(self.taken), "booked": list(self.booked), "waiting": waiting}
        return {**self._identity(), "epochs": self.epochs(), **place}

    def _identity(self) -> dict[str, Any]:
        pieces = [len(source.shards) for source in self.sources]
        recipe = self.recipe
        return {"seed": recipe.seed, "sources": list(recipe.shares), "unit": recipe.unit, "pieces": pieces}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`; ranks, micro-batches, workers and rows a batch may differ, the order may not.

        Raises:
            UserError: The state belongs to another corpus, mixture or seed.
        """
        for key, expected in self._identity().items():
            if state.get(key) != expected:
                raise UserError(
                    f"the checkpoint was written with {key} = {state.get(key)}, this run has {expected}; documents "
                    f"would be repeated or skipped: restore {_SETTING_OF[key]}, or start anew with --init_from"
                )
        self.taken, self.booked = list(state["taken"]), list(state["booked"])
        self.buffer = [self.sources[source].piece(epoch, index) for source, epoch, index in state["waiting"]]


_SETTING_OF = {"seed": "data.seed", "sources": "data.weights", "unit": "data.unit", "pieces": "data.corpus"}


def check_sources(sources: list[Source], recipe: Recipe) -> None:
    """Refuse what could never be packed.

    Raises:
        UserError: A source without documents or without any of the unit that its weight counts, a document that does
            not fit a row.
    """
    for source, name in zip(sources, recipe.shares, strict=True):
        if not len(source.shards):
            raise UserError(
                f"{recipe.corpus} has no training documents in {name!r}, which has weight {recipe.weights[name]}; "
                f"set data.weights.{name} to 0 or write shards for it"
            )
        if recipe.unit == "images" and not _sizes(source.shards)[:, 1].any():
            raise UserError(
                f"data.unit is images, but {name!r} has none, so no share of them can be its own; "
                f"choose another data.unit or set data.weights.{name} to 0"
            )
        check_fits(source.shards, name, recipe)


def check_fits(shards: ShardSet, name: str, recipe: Recipe) -> None:
    """Refuse documents that no row can take.

    Raises:
        UserError: The longest of them, or the most pictures of one, and the settings.
    """
    sizes = _sizes(shards)
    longest = int((sizes @ (1, recipe.image_spec.tokens)).max(initial=0))
    if longest > recipe.row_tokens:
        raise UserError(
            f"{name!r} has a document of {longest} positions, rows have data.row_tokens = {recipe.row_tokens}; "
            f"set it to at least {longest} or write the shards for shorter rows"
        )
    most = int(sizes[:, 1].max(initial=0))
    if most > recipe.images_per_row:
        raise UserError(
            f"{name!r} has a document of {most} pictures, rows take data.images_per_row = {recipe.images_per_row}; "
            f"set it to at least {most} or write the shards for fewer"
        )


def _sizes(shards: ShardSet) -> np.ndarray:
    return np.array([shards.sizes(i) for i in range(len(shards))], dtype=np.int64).reshape(-1, 2)


class Reader:
    """Fetches what a plan names: reads, tokenizes and prepares documents in a few threads, and lays them out."""

    def __init__(self, recipe: Recipe, split: str, threads: int) -> None:
        self.recipe = recipe
        self.tokenizer = Tokenizer(find(recipe.corpus))
        self.names = tuple(recipe.shares)
        self.shards = [ShardSet(recipe.corpus, name, split) for name in self.names]
        self.augment = recipe.augment if split == "train" else None
        self.pool = ThreadPoolExecutor(max_workers=max(1, threads))

    def batch(self, rows: list[list[Piece]]) -> Batch:
        """The batch of these rows."""
        spec = self.recipe.image_spec
        pieces = [piece for row in rows for piece in row]
        samples = [self.shards[piece.source][piece.index] for piece in pieces]
        fetched = list(self.pool.map(self._prepare, pieces, samples))
        images = [image for *_, pictures in fetched for image in pictures]
        none_ICHW = torch.zeros(0, 3, spec.size_px, spec.size_px, dtype=torch.uint8)
        images_ICHW = torch.stack(images) if images else none_ICHW
        documents = iter(fetched)
        laid = [[document[:3] for document in itertools.islice(documents, len(row))] for row in rows]
        batch = to_batch(laid, images_ICHW, self.recipe.row_tokens, self.names)
        check_placeholders(batch, spec.tokens)  # here, because on an accelerator the model cannot say it in a sentence
        return batch

    def _prepare(self, piece: Piece, sample: Sample) -> tuple[int, str, Encoded, list[Tensor]]:
        document = encode(sample, self.tokenizer, self.recipe.image_spec.tokens)
        name = f"{self.names[piece.source]}/{sample.id}"
        if len(document.tokens) != piece.positions:
            raise UserError(
                f"document {name} has {len(document.tokens)} positions, its index says {piece.positions}; "
                f"{self.recipe.corpus} was changed after it was written: write the shards again"
            )
        try:
            pictures = [self._picture(data, piece, number) for number, data in enumerate(document.images)]
            return piece.source, name, document, pictures
        except PictureError as error:
            path = self.shards[piece.source].path(piece.index)
            raise UserError(f"document {name} in {path} is damaged ({error}): {DAMAGED}") from None

    def _picture(self, data: bytes, piece: Piece, number: int) -> Tensor:
        spec = self.recipe.image_spec
        if self.recipe.blank:
            return torch.full((3, spec.size_px, spec.size_px), GREY, dtype=torch.uint8)
        picture = decode(data)
        if self.augment:
            stream = self.names[piece.source]
            picture = self.augment(picture, stream, f"{self.recipe.seed}/{stream}/{piece.epoch}/{piece.index}/{number}")
        return square(picture, spec)


class Windows(IterableDataset[list[Batch]]):
    """For one rank, the micro-batches of every optimizer step, endlessly.

    With W workers, worker w fetches the steps n with ``n % W == w`` and only plans the others; the loader asks the
    workers in turn, so the order is the same for any W.

    Args:
        recipe: What to read.
        rank: This rank, of ``ranks``.
        ranks: Ranks that share a global batch.
        micro_batches: Micro-batches of a step on one rank.
        state: Where to go on, or None to begin.
        threads: Threads that prepare pictures, per worker.

    Raises:
        UserError: The rows of a step cannot be shared out evenly.
    """

    def __init__(
        self, recipe: Recipe, *, rank: int, ranks: int, micro_batches: int, state: dict[str, Any] | None, threads: int
    ) -> None:
        self.recipe, self.rank, self.ranks, self.micro_batches = recipe, rank, ranks, micro_batches
        self.state, self.threads = state, threads
        if recipe.rows_per_step % (ranks * micro_batches):
            raise UserError(
                f"data.rows_per_step is {recipe.rows_per_step}; expected a multiple of {ranks} ranks x {micro_batches} "
                f"micro-batches (trainer.devices, trainer.num_nodes, trainer.accumulate_grad_batches)"
            )
        self.rows = recipe.rows_per_step // (ranks * micro_batches)

    def __iter__(self) -> Iterator[list[Batch]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        plan, reader = Plan(self.recipe), Reader(self.recipe, "train", self.threads)
        if self.state is not None:
            plan.load(self.state)
        for step in itertools.count():
            rows = plan.next_step()
            if step % workers == number:
                yield self._window(rows, reader, plan.state())

    def _window(self, rows: list[list[Piece]], reader: Reader, state: dict[str, Any]) -> list[Batch]:
        starts = [(a * self.ranks + self.rank) * self.rows for a in range(self.micro_batches)]
        batches = [reader.batch(rows[start : start + self.rows]) for start in starts]
        targets, tokens = sum(batch.targets for batch in batches), sum(batch.tokens for batch in batches)
        batches = [replace(batch, window_targets=targets, window_tokens=tokens) for batch in batches]
        return [*batches[:-1], replace(batches[-1], state=state)]


class Loader:
    """Batches one by one, of training or of validation, fetched ahead by ``workers`` processes (0: in this one).

    Only the last micro-batch of a step carries a state: the one to go on from once that step is trained, whatever has
    been fetched ahead by then.
    """

    def __init__(self, source: Windows | HeldOut, workers: int) -> None:
        self.loader: DataLoader[Any] = DataLoader(
            source,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            for fetched in self.loader:
                yield from fetched if isinstance(fetched, list) else [fetched]
        except (UserError, OSError) as error:
            if not str(error).startswith("Caught "):
                raise
            stack_trace = str(error).strip().splitlines()  # in which a worker's error comes wrapped
            raise UserError(stack_trace[-1].partition("Error: ")[2]) from None


class HeldOut(IterableDataset[Batch]):
    """The validation documents in fixed order, packed source by source so that a row's loss has one owner.

    Args:
        recipe: What to read.
        rows: Most rows of a source.
        batch_rows: Rows of a batch.
        rank: This rank, of ``ranks``; each takes every ``ranks``-th batch.
        ranks: Ranks that share the batches.
        threads: Threads that prepare pictures.
    """

    def __init__(self, recipe: Recipe, *, rows: int, batch_rows: int, rank: int, ranks: int, threads: int) -> None:
        self.recipe, self.rows, self.batch_rows = recipe, rows, batch_rows
        self.rank, self.ranks, self.threads = rank, ranks, threads

    def __iter__(self) -> Iterator[Batch]:
        reader = Reader(self.recipe, "val", self.threads)
        batches = [batch for number in range(len(reader.names)) for batch in self._batches(number, reader)]
        for rows in batches[self.rank :: self.ranks]:
            batch = reader.batch(rows)
            yield replace(batch, window_targets=batch.targets, window_tokens=batch.tokens)

    def _batches(self, number: int, reader: Reader) -> list[list[list[Piece]]]:
        source = Source(number, reader.shards[number], self.recipe)
        pieces = (source.piece(0, index) for index in range(len(source.shards)))
        recipe = self.recipe
        limits = recipe.look_ahead, recipe.row_tokens, recipe.images_per_row
        buffer: list[Piece] = []
        rows: list[list[Piece]] = []
        while len(rows) < self.rows and (row := next_row(buffer, lambda: next(pieces, None), *limits)):
            rows.append(row)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]
