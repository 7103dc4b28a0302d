"""What the rows of every global batch consist of, without reading any document (MM1, section 3.3).

    1. Every source is read through again and again, each epoch in another order: one endless sequence of places.
    2. S streams share it: stream s reads the places s, s + S, s + 2 S, ... of every source, and has its own account of
       the mixture and its own queues. No stream needs to know what another one does.
    3. A global batch of R rows takes R / S rows of each stream in turn: row r is one of stream r // (R / S).

Hence whoever fetches some of the rows plans the streams of these rows alone, and the state of a stream after a batch is
small, readable, and the same whoever planned it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mm1.data.forecast import Forecast, Lengths, forecast
from mm1.data.mixture import Account, amount, shares_of
from mm1.data.order import Order
from mm1.data.pack import Limits, Piece, Queue, next_row
from mm1.data.recipe import Recipe
from mm1.data.shards import ShardSet
from mm1.errors import UserError

# How far a source may be taken further than its share to fill a row: a quarter point of the rows so far, in bounds.
SLACK_OF_ROWS, LEAST_SLACK_ROWS, MOST_SLACK_ROWS = 0.0025, 1 / 10, 1.0


class Source:
    """The training documents of one source as an endless sequence: epoch after epoch, each in its own order."""

    def __init__(self, number: int, name: str, shards: ShardSet, recipe: Recipe) -> None:
        self.number, self.shards, self.tokens_per_image = number, shards, recipe.image_spec.tokens
        self.key, self.orders = f"{recipe.seed}/{name}", {0: Order(len(shards), f"{recipe.seed}/{name}/0")}
        self.limit = recipe.limit(name, len(shards))
        self.lengths = Lengths.of(shards, recipe)

    def at(self, place: int) -> Piece | None:
        """The document at ``place`` of the endless sequence; None past its end, if it has one."""
        if self.limit is not None and place >= self.limit:
            return None
        epoch, within = divmod(place, len(self.shards))
        if epoch not in self.orders:  # the last two are kept
            newest = max(self.orders)
            self.orders = {newest: self.orders[newest], epoch: Order(len(self.shards), f"{self.key}/{epoch}")}
        index = self.orders[epoch][within]
        text_tokens, images = self.shards.sizes(index)
        return Piece(self.number, place, epoch, index, text_tokens + images * self.tokens_per_image, images)


class Stream:
    """One of S independent plans.

    Args:
        number: Which.
        recipe: What is read.
        sources: All sources.
        state: Where to go on, or None to begin.
    """

    def __init__(
        self, number: int, recipe: Recipe, sources: Sequence[Source], state: dict[str, Any] | None = None
    ) -> None:
        self.number, self.recipe, self.sources = number, recipe, sources
        self.rows = state["rows"] if state else 0
        self.taken = list(state["taken"]) if state else [0] * len(sources)
        self.account = Account(state["owed"] if state else self._phase())
        self._known: tuple[tuple[float, ...], Forecast] | None = None
        waiting = state["waiting"] if state else [[] for _ in sources]
        self.queues = [self._queue(source, places) for source, places in zip(sources, waiting, strict=True)]

    def _phase(self) -> list[float]:
        """What sources are owed at the beginning: each stream stands elsewhere in a document, as in mid-run.

        If all began alike, all would be off by the same part of a document, and the whole by so much in each stream.
        """
        streams, begun = self.recipe.streams, []
        for source, name in zip(self.sources, self.recipe.names, strict=True):
            place = Order(streams, f"{self.recipe.seed}/{name}/streams")[self.number]
            begun.append((place + 0.5) / streams * source.lengths.met)
        return [share * sum(begun) - part for share, part in zip(self.recipe.shares(), begun, strict=True)]

    def _queue(self, source: Source, places: Sequence[int]) -> Queue:
        waiting = [piece for place in places if (piece := source.at(place)) is not None]
        return Queue(lambda: self._draw(source), self.recipe.look_ahead, self.recipe.streams, waiting)

    def _draw(self, source: Source) -> Piece | None:
        piece = source.at(self.number + self.taken[source.number] * self.recipe.streams)
        self.taken[source.number] += piece is not None
        return piece

    def next_row(self, step: int) -> list[Piece]:
        """The stream's next row, which belongs to ``step``; empty when nothing is left."""
        shares = self.recipe.shares(step)
        shares = shares_of([share if len(queue) else 0.0 for share, queue in zip(shares, self.queues, strict=True)])
        if not any(shares):
            return []
        self.account.share(shares)
        self.rows += 1
        if self.recipe.unit == "rows":
            return self._row_of_one_source()
        outlook = self.outlook(tuple(shares))
        slack_rows = min(MOST_SLACK_ROWS, max(LEAST_SLACK_ROWS, SLACK_OF_ROWS * self.rows))
        slack = slack_rows * outlook.fill * outlook.amount
        return next_row(self.queues, self._limits(outlook), lambda: self.account.ranked(slack), self._book)

    def _row_of_one_source(self) -> list[Piece]:
        chosen = self.account.ranked(0)[0]
        self.account.book(chosen, 1)
        alone = tuple(float(source.number == chosen) for source in self.sources)
        return next_row(self.queues, self._limits(self.outlook(alone)), lambda: [chosen], lambda piece: None)

    def outlook(self, shares: tuple[float, ...]) -> Forecast:
        """What rows will hold where sources have these shares."""
        if self._known is None or self._known[0] != shares:
            self._known = shares, forecast(self.recipe, shares, [source.lengths for source in self.sources])
        return self._known[1]

    def _limits(self, outlook: Forecast) -> Limits:
        row_tokens = self.recipe.row_tokens
        positions_per_picture = row_tokens / outlook.images if outlook.images else math.inf
        return Limits(row_tokens, self.recipe.images_per_row, positions_per_picture, (1 - outlook.fill) * row_tokens)

    def _book(self, piece: Piece) -> None:
        tokens_per_image = self.recipe.image_spec.tokens
        text_tokens = piece.positions - piece.images * tokens_per_image
        self.account.book(piece.source, amount(self.recipe.unit, text_tokens, piece.images, tokens_per_image))

    @property
    def ended(self) -> str | None:
        """The source at whose end training is to stop, if it has been reached."""
        used_up = [name for name, queue in zip(self.recipe.names, self.queues, strict=True) if not len(queue)]
        stops = self.recipe.when_exhausted == "stop" or len(used_up) == len(self.queues)
        return used_up[0] if used_up and stops else None

    def state(self) -> dict[str, Any]:
        """The state after the rows planned so far, plain values only."""
        waiting = [[piece.place for piece in queue.waiting] for queue in self.queues]
        so_far = {"rows": self.rows, "taken": list(self.taken), "owed": list(self.account.owed)}
        return {"stream": self.number, **so_far, "waiting": waiting}


class Plan:
    """The rows of every global batch that some of the streams give.

    Args:
        recipe: What is read.
        shards: The training shards of every source.
        streams: Which streams to plan; all if not given.
        state: Where to go on, or None to begin. Ranks, micro-batches, workers and rows of a batch may differ from those
            of the run it comes from; the order of documents may not.

    Raises:
        UserError: The state belongs to another corpus, mixture or seed.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[ShardSet],
        streams: Iterable[int] | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe
        if state is not None:
            check_resumes(state, recipe, shards)
        self.sources = [
            Source(number, name, of, recipe) for number, (name, of) in enumerate(zip(recipe.names, shards, strict=True))
        ]
        self.step = state["step"] if state else 0
        states = {plan["stream"]: plan for plan in state["plans"]} if state else {}
        numbers = range(recipe.streams) if streams is None else streams
        self.streams = [Stream(number, recipe, self.sources, states.get(number)) for number in numbers]

    def next_step(self) -> dict[int, list[Piece]]:
        """The rows of the next global batch, by their number in it."""
        rows = self.recipe.rows_per_step // self.recipe.streams
        planned = {
            stream.number * rows + row: stream.next_row(self.step) for stream in self.streams for row in range(rows)
        }
        self.step += 1
        return planned

    @property
    def ended(self) -> str | None:
        """The source at whose end training is to stop, if one of the streams has reached it."""
        return next((stream.ended for stream in self.streams if stream.ended is not None), None)

    def state(self) -> dict[str, Any]:
        """The state after the steps planned so far, plain values only."""
        identity = _identity(self.recipe, [source.shards for source in self.sources])
        plans = [stream.state() for stream in self.streams]
        return {**identity, "step": self.step, "ended": self.ended, "epochs": _epochs(identity, plans), "plans": plans}


def trial(recipe: Recipe, shards: Sequence[ShardSet], step: int, rows: int) -> tuple[Forecast, float]:
    """What rows of this mix can hold, and the share of their positions that some rows, planned to see, do fill."""
    [stream] = Plan(recipe, shards, [0]).streams
    planned = [stream.next_row(step) for _ in range(rows)]
    filled = sum(piece.positions for row in planned for piece in row)
    return stream.outlook(tuple(recipe.shares(step))), filled / (rows * recipe.row_tokens)


def _epochs(identity: dict[str, Any], plans: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How often each source has been read through, as far as these streams tell; what only waits does not count."""
    share = identity["streams"] / len(plans)
    laid = [
        share * sum(plan["taken"][number] - len(plan["waiting"][number]) for plan in plans)
        for number in range(len(identity["sources"]))
    ]
    return {name: n / of for name, n, of in zip(identity["sources"], laid, identity["pieces"], strict=True)}


def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state of all streams, from those of ranks that each planned some of them after the same step."""
    by_stream = {plan["stream"]: plan for state in states for plan in state["plans"]}
    plans = [by_stream[number] for number in sorted(by_stream)]
    ended = next((state["ended"] for state in states if state["ended"] is not None), None)
    return {**states[0], "ended": ended, "epochs": _epochs(states[0], plans), "plans": plans}


def check_resumes(state: dict[str, Any], recipe: Recipe, shards: Sequence[ShardSet]) -> None:
    """Refuse a state in which other documents would come next.

    Raises:
        UserError: The first difference, with both values and the setting.
    """
    for key, expected in _identity(recipe, shards).items():
        if state.get(key) != expected:
            raise UserError(
                f"the checkpoint was written with {key} = {state.get(key)}, this run has {expected}; documents "
                f"would be repeated or skipped: restore {_SETTING_OF[key]}, or start anew with --init_from"
            )


def _identity(recipe: Recipe, shards: Sequence[ShardSet]) -> dict[str, Any]:
    pieces = [len(of) for of in shards]
    about = {"seed": recipe.seed, "sources": list(recipe.names), "unit": recipe.unit, "pieces": pieces}
    return {**about, "streams": recipe.streams}


_SETTING_OF = {
    "seed": "data.seed",
    "sources": "data.weights",
    "unit": "data.unit",
    "pieces": "data.corpus",
    "streams": "data.streams",
}
