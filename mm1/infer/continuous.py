"""Continuous batching: when a row's answer has ended, the next prompt takes its place (Orca, Yu et al. 2022)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mm1.data.tokenizer import Tokenizer
from mm1.infer.features import Asked, Features
from mm1.infer.queue import Group
from mm1.infer.slots import Shared, Slots
from mm1.infer.spelling import Spelling

SHARED_COSTS = 4  # a shared position is copied for every prompt: one in so many counts as one that is read
READ_AT_ONCE = 16384  # positions of prompts read in one go, beside a longer prompt alone: bounds activations
STEPS = 4  # tokens between two looks of the host; spelling hundreds of answers takes as long as deciding a token
FREE_SHARE = 8  # prompts are read once one slot in so many is free: few at a time would not fill a GPU


@dataclass(frozen=True)
class Answer:
    """What was said to a prompt.

    Args:
        index: Which prompt.
        text: The answer, without white space at its ends and what a stop string begins.
        tokens: Its ids, without the end token.
        margin: The smallest difference of the two best logits among its tokens: where it is tiny, another machine or
            type may say something else. None where tokens were drawn or searched.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    margin: float | None


class Task:
    """Prompts for a crew of slots.

    Args:
        prompts: All prompts.
        names: What each is called, for what is drawn.
        groups: Those to answer, in this order, and what they begin with.
        tokens_per_image: Tokens of a picture.
    """

    def __init__(
        self, prompts: Sequence[Asked], names: Sequence[str], groups: Sequence[Group], tokens_per_image: int
    ) -> None:
        self.prompts, self.names, self.tokens_per_image = prompts, names, tokens_per_image
        self.waiting = deque((group, at) for group in groups for at in group.members)
        self._read: tuple[Group, Shared] | None = None

    def rest(self, group: Group, at: int) -> Asked:
        """A prompt without what is shared."""
        asked = self.prompts[at]
        return asked.part(group.shared, len(asked), self.tokens_per_image) if group.shared else asked

    def take(self, count: int) -> list[tuple[Group, list[int]]]:
        """The next prompts, at most ``count``, in lots that are read in one go."""
        lots: list[tuple[Group, list[int]]] = []
        longest = 0
        for _ in range(min(count, len(self.waiting))):
            group, at = self.waiting.popleft()
            new = len(self.prompts[at]) - group.shared + group.shared // SHARED_COSTS
            longest = max(longest, new)
            alike = lots and (lots[-1][0] is group or (not lots[-1][0].shared and not group.shared))
            if alike and (len(lots[-1][1]) + 1) * longest <= READ_AT_ONCE:
                lots[-1][1].append(at)
            else:
                lots.append((group, [at]))
                longest = new
        return lots

    def shared(self, group: Group, slots: Slots, features: Features) -> Shared | None:
        """What a group begins with, read the first time; that of one group is kept at a time."""
        if not group.shared:
            return None
        if self._read is None or self._read[0] is not group:
            asked = self.prompts[group.members[0]].part(0, group.shared, self.tokens_per_image)
            self._read = group, slots.share(asked, features)
        return self._read[1]


class Continuous:
    """Answers the prompts of a task in slots.

    Args:
        slots: Where.
        features: Of pictures.
        tokenizer: Who spells.
        stop: Strings before which an answer ends.
    """

    def __init__(self, slots: Slots, features: Features, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.slots, self.features, self.tokenizer, self.stop = slots, features, tokenizer, tuple(stop)
        self.said: list[tuple[int, Spelling] | None] = [None] * slots.rows
        self.rows = slots.rows  # slots that are stepped: fewer at the end of a task

    def run(self, task: Task) -> Iterator[Answer]:
        """Answers as they are finished."""
        while task.waiting or self._busy():
            free = [slot for slot in range(self.rows) if self.said[slot] is None]
            if task.waiting and (len(free) * FREE_SHARE >= self.rows or len(free) == self.rows):
                self._fill(task, free)
            elif not task.waiting:
                self._close_ranks()
            self._steps(task)
            yield from self._look()

    def _busy(self) -> list[int]:
        return [slot for slot, said in enumerate(self.said) if said is not None]

    def _fill(self, task: Task, free: list[int]) -> None:
        lots = task.take(len(free))
        self.features.load([task.rest(group, at) for group, lot in lots for at in lot])
        self.features.expect(task.rest(*next_) for next_ in itertools.islice(task.waiting, 2 * self.rows))
        for group, lot in lots:
            slots, free = free[: len(lot)], free[len(lot) :]
            shared = task.shared(group, self.slots, self.features)
            hidden_BD = self.slots.read(slots, [task.rest(group, at) for at in lot], self.features, shared)
            self.slots.begin(slots, hidden_BD, [task.names[at] for at in lot])
            for slot, at in zip(slots, lot, strict=True):
                self.said[slot] = at, Spelling(self.tokenizer, self.stop)
        self.features.release()

    def _steps(self, task: Task) -> None:
        """As many as nobody needs to look between."""
        known = [(len(task.prompts[said[0]]), max(1, len(said[1].tokens))) for said in self.said if said is not None]
        steps = min(STEPS, self.slots.new - min(spoken for _, spoken in known))
        seen = max(length + spoken for length, spoken in known)
        for step in range(steps):
            if step and not self.slots.token_S.is_cuda and not self.slots.active_S.any():
                return  # on a CPU looking costs nothing
            self.slots.step(self.rows, min(self.slots.columns, seen + step))

    def _look(self) -> Iterator[Answer]:
        """Spell what is new; what has ended leaves its slot."""
        tokens, counts, going, margins = self.slots.told()
        ended = []
        for slot in self._busy():
            said = self.said[slot]
            assert said is not None
            at, spelling = said
            known = len(spelling.tokens)
            for token in tokens[slot][known : counts[slot]]:
                spelling.add(token)
            if self.stop:
                spelling.spell()
            if spelling.ended or not going[slot]:
                text = spelling.spell()
                margin = None if self.slots.decoding.sampled else margins[slot]
                self.said[slot] = None
                ended.append(slot)
                yield Answer(at, text, tuple(spelling.tokens), margin)
        if ended:
            self.slots.end(ended)

    def _close_ranks(self) -> None:
        """Once half the slots are idle and nobody waits, those that go on move to the front and the rest rests."""
        busy, rows = self._busy(), self.rows
        while rows > 1 and 2 * len(busy) <= rows:
            rows = -(-rows // 2)
            if 2 * len(busy) > rows:
                break
        if busy and rows < self.rows:
            self.slots.move(busy, list(range(len(busy))))
            kept = [self.said[slot] for slot in busy]
            self.said = [*kept, *[None] * (self.slots.rows - len(busy))]
            self.rows = rows
            self.slots.end(list(range(len(busy), self.slots.rows)))
