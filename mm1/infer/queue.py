"""In what order prompts are read, which of them share a beginning, and how many are decoded side by side.

Prompts that begin alike (fixed demonstrations) form a group, whose beginning is read once. Within a group long prompts
come first, so that memory is known from the start, and a crew of slots serves prompts of like length: where one much
shorter follows, the next crew has more slots::

    batch_positions 32, prompts of 15 14 12 | 7 7 6 positions with their answers
    crew 1: 2 slots of 15      crew 2: 4 slots of 7
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

from mm1.batch import IMAGE
from mm1.infer.features import Asked

SHARED_AT_LEAST = 16  # positions; less is read faster than it is copied
SAVED_AT_LEAST = 256  # positions in all, or as many as the group's longest prompt has: less is no reason for a group
ALIKE = 1.5  # a prompt this much shorter than its crew's slots waits for the next crew


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike.

    Args:
        shared: How many positions are the same in all.
        members: Their indices.
    """

    shared: int
    members: list[int]


@dataclass(frozen=True)
class Crew:
    """Groups that are decoded in the same slots, one after the other.

    Args:
        rows: Slots.
        columns: Positions of a slot.
        groups: In the order in which they are read.
    """

    rows: int
    columns: int
    groups: list[Group]


def groups(prompts: Sequence[Asked], tokens_per_image: int, share: bool = True) -> list[Group]:
    """All prompts, those together that save much by sharing, each group's longest first.

    Prompts in the order of what they say stand beside those that begin alike, and what a run of them shares is the
    least that two neighbours do. A run ends where that would halve.
    """
    everyone = list(range(len(prompts)))
    if not share or len(prompts) < 2:
        return [Group(0, [at]) for at in everyone]
    keys = [_key(asked, tokens_per_image) for asked in prompts]
    everyone.sort(key=lambda at: keys[at].tobytes())
    found: list[Group] = []
    run, shared = [everyone[0]], 0
    for at in [*everyone[1:], -1]:
        both = 0 if at < 0 else _alike(keys[run[-1]], keys[at])
        within = both if len(run) == 1 else min(shared, both)
        if within >= SHARED_AT_LEAST and 2 * within >= shared:
            run, shared = [*run, at], within
            continue
        lengths = [len(prompts[member]) for member in run]
        shared = whole(prompts[run[0]], min(shared, min(lengths) - 1), tokens_per_image)
        if shared * (len(run) - 1) >= min(SAVED_AT_LEAST, max(lengths)):
            found.append(Group(shared, sorted(run, key=lambda at: (-len(prompts[at]), at))))
        else:
            found += [Group(0, [member]) for member in run]
        run, shared = [at], 0
    return found


def whole(asked: Asked, tokens: int, tokens_per_image: int) -> int:
    """The most positions, at most ``tokens``, that cut no picture in two."""
    return tokens - int((asked.tokens_T[:tokens] == IMAGE).sum()) % tokens_per_image


def crews(
    prompts: Sequence[Asked], found: Sequence[Group], new: int, batch_positions: int, *, beams: int = 1, step: int = 1
) -> Iterator[Crew]:
    """Crews for groups.

    Args:
        prompts: All prompts.
        found: Their groups.
        new: Tokens of an answer at most.
        batch_positions: Positions of all slots together; a crew answers one prompt at a time in any case.
        beams: Slots that a prompt takes.
        step: Slots have a multiple of so many positions, so that those of the next call have as many.
    """

    def longest(group: Group) -> int:
        return len(prompts[group.members[0]]) + new

    queue = sorted(found, key=lambda group: (-longest(group), group.members[0]))
    while queue:
        columns = -(-longest(queue[0]) // step) * step
        room = max(1, batch_positions // (columns * beams))
        last = next((at for at, group in enumerate(queue) if longest(group) * ALIKE < columns), len(queue))
        if sum(len(group.members) for group in queue) <= room:  # all find a slot at once: nothing is gained by waiting
            last = len(queue)
        asked = sum(len(group.members) for group in queue[:last])
        yield Crew(min(room, asked) * beams, columns, queue[:last])
        queue = queue[last:]


def _key(asked: Asked, tokens_per_image: int) -> numpy.ndarray:
    """What stands at each position, a picture's tokens told from those of others by its content."""
    key = asked.tokens_T.numpy().astype(">i8")
    if asked.names:
        pictures = numpy.frombuffer(b"".join(name[:8] for name in asked.names), dtype=">i8").astype("i8")
        key[key == IMAGE] = -1 - (pictures.repeat(tokens_per_image) & 0x7FFFFFFFFFFFFFFF) // 2
    return key


def _alike(one: numpy.ndarray, other: numpy.ndarray) -> int:
    """How many positions both begin with."""
    shortest = min(len(one), len(other))
    differ = numpy.flatnonzero(one[:shortest] != other[:shortest])
    return int(differ[0]) if len(differ) else shortest
