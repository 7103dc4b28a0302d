"""The endless sequence of global batches, a function of configuration and seed alone (MM1, section 3.3).

Rank r of R takes the r-th part of the rows of every global batch (:mod:`mm1.data.plan`), and its micro-batches are
equal parts of that. It plans the streams that these rows belong to and fetches the rows; any split over ranks,
micro-batches and workers gives the same rows. The last micro-batch of a step carries the state to go on from.
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mm1.batch import Batch
from mm1.data.pack import Limits, Piece, Queue, next_row
from mm1.data.plan import Plan
from mm1.data.reader import Reader
from mm1.data.recipe import Recipe, open_shards
from mm1.data.shards import ShardSet
from mm1.data.trays import Parcel, Trays
from mm1.errors import UserError

PREFETCHED = 2  # steps that a worker fetches ahead
IN_USE = 3  # steps whose memory is held meanwhile: being pinned, copied to the device, trained on


class Windows(IterableDataset[list[Batch | Parcel]]):
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
        shards: The training shards, if they are open already; forked workers share their memory.

    Raises:
        UserError: The rows of a step cannot be shared out evenly, or the corpus does not fit the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        rank: int,
        ranks: int,
        micro_batches: int,
        state: dict[str, Any] | None,
        threads: int,
        shards: Sequence[ShardSet] | None = None,
    ) -> None:
        self.recipe, self.micro_batches, self.state, self.threads = recipe, micro_batches, state, threads
        if recipe.rows_per_step % (ranks * micro_batches):
            raise UserError(
                f"data.rows_per_step is {recipe.rows_per_step}; expected a multiple of {ranks} ranks x {micro_batches} "
                f"micro-batches (trainer.devices, trainer.num_nodes, trainer.accumulate_grad_batches)"
            )
        rows = recipe.rows_per_step // ranks
        self.rows = range(rank * rows, (rank + 1) * rows)
        self.shards = open_shards(recipe, "train") if shards is None else shards
        self.trays: list[Trays] = []

    def lay_out_trays(self, workers: int) -> None:
        """Make the memory in which forked workers will send their batches (:mod:`mm1.data.trays`)."""
        recipe, rows = self.recipe, len(self.rows) // self.micro_batches
        count, row_tokens = (PREFETCHED + IN_USE) * self.micro_batches, recipe.row_tokens
        picture_bytes = rows * recipe.images_per_row * 3 * recipe.image_spec.size_px**2
        made = (Trays(count, rows=rows, row_tokens=row_tokens, picture_bytes=picture_bytes) for _ in range(workers))
        self.trays = list(made)

    @property
    def streams(self) -> list[int]:
        """The streams that this rank's rows belong to."""
        rows_of_a_stream = self.recipe.rows_per_step // self.recipe.streams
        return sorted({row // rows_of_a_stream for row in self.rows})

    def __iter__(self) -> Iterator[list[Batch | Parcel]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        plan = Plan(self.recipe, self.shards, self.streams, self.state)
        reader = Reader(self.recipe, self.shards, self.threads, vary=True)
        for step in itertools.count():
            planned = plan.next_step()
            if step % workers == number:
                trays = [self.trays[number].take() if self.trays else None for _ in range(self.micro_batches)]
                memory = [tray.memory if tray else None for tray in trays]
                window = self._window([planned[row] for row in self.rows], reader, plan.state(), memory)
                yield [tray.parcel(batch) if tray else batch for tray, batch in zip(trays, window, strict=True)]

    def _window(
        self, rows: list[list[Piece]], reader: Reader, state: dict[str, Any], memory: list[numpy.ndarray | None]
    ) -> list[Batch]:
        size = len(rows) // self.micro_batches
        batches = [reader.batch(rows[a * size : (a + 1) * size], place) for a, place in enumerate(memory)]
        targets, tokens = sum(batch.targets for batch in batches), sum(batch.tokens for batch in batches)
        batches = [replace(batch, window_targets=targets, window_tokens=tokens) for batch in batches]
        return [*batches[:-1], replace(batches[-1], state=state)]


class HeldOut(IterableDataset[Batch]):
    """The validation documents in fixed order, packed source by source so that a row's loss has one owner.

    Args:
        recipe: What to read.
        rows: Most rows of a source.
        batch_rows: Rows of a batch.
        rank: This rank, of ``ranks``; each takes every ``ranks``-th batch, and one of padding where none is left.
        ranks: Ranks that share the batches.
        threads: Threads that prepare pictures.

    Raises:
        UserError: The corpus does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, *, rows: int, batch_rows: int, rank: int, ranks: int, threads: int) -> None:
        self.recipe, self.rows, self.batch_rows = recipe, rows, batch_rows
        self.rank, self.ranks, self.threads = rank, ranks, threads
        self.shards = open_shards(recipe, "val")

    def __iter__(self) -> Iterator[Batch]:
        reader = Reader(self.recipe, self.shards, self.threads, vary=False)
        batches = [batch for number in range(len(self.shards)) for batch in self._batches(number)]
        empty: list[list[Piece]] = [[] for _ in range(self.batch_rows)]
        batches += [empty] * (-len(batches) % self.ranks)  # ranks wait for each other in every batch
        for rows in batches[self.rank :: self.ranks]:
            batch = reader.batch(rows)
            yield replace(batch, window_targets=batch.targets, window_tokens=batch.tokens)

    def _batches(self, number: int) -> list[list[list[Piece]]]:
        recipe = self.recipe
        pieces = _in_order(number, self.shards[number], recipe.image_spec.tokens)
        queue = Queue(lambda: next(pieces, None), recipe.look_ahead)
        limits = Limits(recipe.row_tokens, recipe.images_per_row, recipe.row_tokens)
        rows: list[list[Piece]] = []
        while len(rows) < self.rows and (row := next_row([queue], limits, lambda: [0], lambda piece: None)):
            rows.append(row)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]


def _in_order(number: int, shards: ShardSet, tokens_per_image: int) -> Iterator[Piece]:
    for index in range(len(shards)):
        text_tokens, images = shards.sizes(index)
        yield Piece(number, index, 0, index, text_tokens + images * tokens_per_image, images)


class Loader:
    """Batches one by one, of training or of validation, fetched ahead by ``workers`` processes (0: in this one).

    Args:
        source: What gives them.
        workers: Processes.
        timeout_s: After so many seconds without anything from a worker it counts as hanging; 0 waits for ever.
    """

    def __init__(self, source: Windows | HeldOut, workers: int, timeout_s: float = 0) -> None:
        self.source, self.timeout_s = source, timeout_s
        self.waited_s = 0.0  # by whoever asked for the next batch
        self.loader: DataLoader[Any] = DataLoader(
            source,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=torch.cuda.is_available(),
            timeout=timeout_s if workers else 0,
            worker_init_fn=_undisturbed,
            generator=torch.Generator(),  # it draws a seed that nobody uses; the process's numbers are the model's
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            UserError: What a worker raised, or that one died or hangs.
        """
        if isinstance(self.source, Windows) and multiprocessing.get_start_method() == "fork":
            self.source.lay_out_trays(self.loader.num_workers)
        fetching = iter(self.loader)
        # what ends with this process has to end by force, since workers do not listen to the signal that Python sends
        workers = getattr(fetching, "_workers", ())
        end = Finalize(None, _kill, args=(workers,), exitpriority=10)
        try:
            while (fetched := self._timed(fetching)) is not None:
                yield from fetched if isinstance(fetched, list) else [fetched]
        except RuntimeError as error:
            if "DataLoader timed out" in str(error):
                raise UserError(_give_up(fetching, self.timeout_s)) from None
            raise lost_worker(error) or error from None
        except (UserError, OSError) as error:
            if not str(error).startswith("Caught "):
                raise
            stack_trace = str(error).strip().splitlines()  # in which a worker's error comes wrapped
            raise UserError(stack_trace[-1].partition("Error: ")[2]) from None
        finally:
            del fetching  # which ends its workers, unless an interruption's stack trace still holds it
            if all(worker.exitcode is not None for worker in workers):
                end.cancel()

    def _timed(self, fetching: Iterator[Any]) -> Any:
        """The next of the fetched batches, None after the last."""
        begun_s = time.monotonic()
        try:
            return next(fetching, None)
        finally:
            self.waited_s += time.monotonic() - begun_s


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _undisturbed(worker: int) -> None:
    """A signal to the whole job is the training process's to answer, which needs its workers until it has."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def lost_worker(error: RuntimeError) -> UserError | None:
    """What to tell of a loader's process that died, if that is what torch's error is about.

    Torch raises it wherever the training process happens to be, so that not only the loader meets it.
    """
    found = re.match(r"DataLoader worker \(pid\S* ([\d, ]+)\) ", str(error))
    if found is None:
        return None
    how = re.search(r"killed by signal: [\w ]+|exit code \d+", str(error))
    return UserError(
        f"the data worker with process id {found[1]} died ({how[0] if how else 'exited unexpectedly'}); expected it to "
        f"live as long as training does: if memory ran out, lower data.workers; the same command goes on"
    )


def _give_up(fetching: Any, timeout_s: float) -> str:
    """End a loader of which one worker hangs, which may not even answer to being asked to stop."""
    number = fetching._task_info[fetching._rcvd_idx][0]
    workers = fetching._workers
    heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise at once that a worker was killed
    for worker in workers:
        worker.kill()
    fetching._shutdown_workers()
    signal.signal(signal.SIGCHLD, heard)
    return (
        f"data worker {number} (process id {workers[number].pid}) gave nothing for {timeout_s:g} seconds; "
        f"expected a batch within data.timeout_s: see whether the storage of data.corpus answers, or set it higher"
    )
