"""Beam search with the rules of transformers (``early_stopping`` false), each prompt's beams in slots side by side.

A prompt is read into the first of its slots and copied to the others; after each token slots become what the beams that
go on were, from the prompt's end on. Which go on is decided on the host, so a token costs a look at the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mm1.data.tokenizer import Tokenizer
from mm1.infer.continuous import Answer, Task
from mm1.infer.features import Features, to_device
from mm1.infer.slots import Slots
from mm1.infer.spelling import Spelling

NEVER = -1e9  # the log-likelihood of what may not go on


@dataclass(frozen=True)
class Beam:
    """A beginning of an answer, its log-likelihood, and which beam of the step before it goes on from."""

    tokens: tuple[int, ...] = ()
    log: float = NEVER
    source: int = 0


@dataclass
class Search:
    """The search for one answer.

    Args:
        beams: How many go on.
        length_penalty: A finished answer's log-likelihood is divided by its length, end token too, to this power.
        new: Tokens at most.
        ends: Whether a token, behind those before it, ends an answer.
    """

    beams: int
    length_penalty: float
    new: int
    ends: Callable[[tuple[int, ...]], bool]
    going: list[Beam] = field(init=False)
    finished: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # all begin alike, so only the first may go on at the first step
        self.going = [Beam(log=0.0), *[Beam()] * (self.beams - 1)]

    def step(self, candidates: Sequence[tuple[float, int, int]]) -> bool:
        """Whether the search goes on, with ``going`` renewed.

        Args:
            candidates: The 2 x ``beams`` best (log-likelihood, beam, token), the best first: enough for ``beams`` to
                go on if as many end.
        """
        found = [Beam((*self.going[beam].tokens, token), log, beam) for log, beam, token in candidates]
        length = len(found[0].tokens)
        over = [length >= self.new or self.ends(beam.tokens) for beam in found]
        for beam, ended in list(zip(found, over, strict=True))[: self.beams]:
            if ended:
                self.finished.append((beam.log / length**self.length_penalty, beam.tokens))
        self.finished = sorted(self.finished, key=lambda done: -done[0])[: self.beams]
        left = [replace(beam, log=beam.log + NEVER * ended) for beam, ended in zip(found, over, strict=True)]
        self.going = sorted(left, key=lambda beam: -beam.log)[: self.beams]
        if all(over):
            return False
        best = self.going[0].log / length**self.length_penalty
        return len(self.finished) < self.beams or best > self.finished[-1][0]

    @property
    def best(self) -> tuple[int, ...]:
        """The answer, once the search is over."""
        return self.finished[0][1]


@dataclass(frozen=True)
class Seat:
    """What the slots from ``first`` on are taken by: prompt ``at``, of so many positions."""

    first: int
    at: int
    length: int
    search: Search


class Beams:
    """Answers the prompts of a task by beam search.

    Args:
        slots: Where; as many for a prompt as there are beams.
        features: Of pictures.
        tokenizer: Who spells.
        stop: Strings before which an answer ends; a beam that says one is finished.
    """

    def __init__(self, slots: Slots, features: Features, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.slots, self.features, self.tokenizer, self.stop = slots, features, tokenizer, tuple(stop)
        self.beams = slots.decoding.beams
        self.seats: dict[int, Seat] = {}

    def run(self, task: Task) -> Iterator[Answer]:
        """Answers as they are finished."""
        while task.waiting or self.seats:
            free = [first for first in range(0, self.slots.rows, self.beams) if first not in self.seats]
            for group, lot in task.take(len(free)):
                firsts, free = free[: len(lot)], free[len(lot) :]
                shared = task.shared(group, self.slots, self.features)
                hidden_BD = self.slots.read(firsts, [task.rest(group, at) for at in lot], self.features, shared)
                self.slots.move([first for first in firsts for _ in range(self.beams)], self._rows(firsts))
                seats = [
                    Seat(first, at, len(task.prompts[at]), self._search())
                    for first, at in zip(firsts, lot, strict=True)
                ]
                self.seats |= {seat.first: seat for seat in seats}
                yield from self._choose(seats, hidden_BD.repeat_interleave(self.beams, dim=0))
            if self.seats:
                yield from self._step(list(self.seats.values()))

    def _rows(self, firsts: Sequence[int]) -> list[int]:
        return [first + beam for first in firsts for beam in range(self.beams)]

    def _search(self) -> Search:
        decoding = self.slots.decoding

        def ends(tokens: tuple[int, ...]) -> bool:
            if tokens[-1] == self.tokenizer.eos or not self.stop:
                return tokens[-1] == self.tokenizer.eos
            text = self.tokenizer.decode(tokens)
            return any(mark in text for mark in self.stop)

        return Search(self.beams, decoding.length_penalty, self.slots.new, ends)

    def _step(self, seats: list[Seat]) -> Iterator[Answer]:
        """Read the last token of every beam and choose the next."""
        seen = max(seat.length + len(seat.search.going[0].tokens) for seat in seats)
        hidden_SD = self.slots.hidden(self.slots.rows, min(seen, self.slots.columns))
        rows_B = to_device(torch.tensor(self._rows([seat.first for seat in seats])), hidden_SD.device)
        self.slots.position_S[rows_B] += 1
        yield from self._choose(seats, hidden_SD[rows_B])

    def _choose(self, seats: list[Seat], hidden_BD: Tensor) -> Iterator[Answer]:
        """Take searches on by a token; ``hidden_BD`` has a row for each beam of each."""
        logs_BV = self.slots.scores(hidden_BD).log_softmax(dim=-1)
        before = torch.tensor([[beam.log for beam in seat.search.going] for seat in seats])
        logs_PC = (logs_BV.unflatten(0, before.shape) + to_device(before, logs_BV.device)[..., None]).flatten(1)
        best = logs_PC.topk(2 * self.beams, dim=-1)
        going, vocabulary = [], logs_BV.shape[-1]
        for seat, logs, codes in zip(seats, best.values.tolist(), best.indices.tolist(), strict=True):
            if seat.search.step([(log, *divmod(code, vocabulary)) for log, code in zip(logs, codes, strict=True)]):
                going.append(seat)
            else:
                del self.seats[seat.first]
                yield self._answer(seat)
        if going:
            self._go_on(going)

    def _go_on(self, seats: list[Seat]) -> None:
        """Slots become what the beams that go on were, and read their last tokens next."""
        rows = self._rows([seat.first for seat in seats])
        sources = [seat.first + beam.source for seat in seats for beam in seat.search.going]
        if sources != rows:
            self.slots.move(sources, rows, first=min(seat.length for seat in seats), state=False)
        device = self.slots.token_S.device
        rows_B = to_device(torch.tensor(rows), device)
        last = [beam.tokens[-1] for seat in seats for beam in seat.search.going]
        self.slots.token_S[rows_B], self.slots.active_S[rows_B] = to_device(torch.tensor(last), device), True

    def _answer(self, seat: Seat) -> Answer:
        spelling = Spelling(self.tokenizer, self.stop)
        for token in seat.search.best:
            spelling.add(token)
        return Answer(seat.at, spelling.spell(), tuple(spelling.tokens), None)
