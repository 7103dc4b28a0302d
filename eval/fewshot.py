"""Which demonstrations a question gets, and which picture its blind arm shows: functions of the seed and of ids alone.

Drawn by rank or by place in a batch, scores would change with the number of GPUs.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from eval.pictures import content, read
from eval.task import Query, Task
from mm1.errors import UserError

Name = TypeVar("Name", str, tuple[str, ...])


@dataclass
class Demonstrations:
    """Draws demonstrations for the questions of one task.

    They come from the task's train part, never with a scored picture; where there is none from the scored questions,
    never with the query's own picture. What has no answer, as in a test part, demonstrates nothing. All pictures of a
    prompt differ. The first 4 of 8 are those of 4 shots.

    Args:
        task: The task.
        seed: Of all draws.
    """

    task: Task
    seed: int
    _scored: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        scored = self.task.whole if self.task.train else ()
        self._scored = frozenset(content(path) for query in scored for path in query.pictures)

    @property
    def pool(self) -> tuple[Query, ...]:
        """What they are drawn from."""
        return self.task.train or self.task.whole

    def of(self, query: Query, shots: int) -> list[Query]:
        """``shots`` demonstrations for ``query``.

        Raises:
            UserError: The pool holds fewer pictures that may be shown.
        """
        chosen: list[Query] = []
        used = set(_contents(query))
        for at in self._order(query) if shots else ():
            pictures = self._shown(self.pool[at]) if self.pool[at].answer.strip() else ()
            if pictures and used.isdisjoint(pictures) and self._scored.isdisjoint(pictures):
                chosen.append(self.pool[at])
                used.update(pictures)
            if len(chosen) == shots:
                break
        if len(chosen) < shots:
            raise UserError(
                f"{self.task.name}: {shots} shots for question {query.id}, but only {len(chosen)} other pictures "
                f"with an answer to demonstrate with; expected at most {len(chosen)} (settings: shots)"
            )
        return chosen

    def _order(self, query: Query) -> Iterator[int]:
        """Places in the pool, the first to be shown first."""
        return _shuffled(len(self.pool), random.Random(f"{self.seed}/{query.id}"))

    def _shown(self, demonstration: Query) -> tuple[str, ...]:
        """Contents of its pictures; none of the train part where one is broken, as training left it out too."""
        try:
            return _contents(demonstration) if all(map(read, demonstration.pictures)) else ()
        except UserError:
            if self.task.train:
                return ()
            raise


def blind(task: Task, seed: int) -> dict[str, Query]:
    """Every query with another picture in place of its own, by id; text, demonstrations and references stay.

    Photographs are told apart by content, and all questions about one are shown the same other one, whatever the
    limit; a question about several is shown those of another about as many. Of made-up words the pictures that define
    them trade places and the one asked about stays.

    Raises:
        UserError: There is no other picture.
    """
    if task.kind == "icl":
        return {query.id: _trade(query, task) for query in task.queries}
    paths = {content(path): path for query in task.whole for path in query.pictures}
    if len(paths) == 1:
        raise UserError(f"{task.name} has one picture, so there is no other for its blind arm; set arms to [sighted]")
    alike: dict[int, set[tuple[str, ...]]] = defaultdict(set)  # prompts with as many pictures trade them
    for query in task.whole:
        alike[len(query.pictures)].add(_contents(query))
    other = {mine: theirs for some in alike.values() for mine, theirs in derangement(sorted(some), seed).items()}
    return {query.id: _shows(query, other[_contents(query)], paths, task, seed) for query in task.queries}


def _contents(query: Query) -> tuple[str, ...]:
    return tuple(content(path) for path in query.pictures)


def _shows(query: Query, names: tuple[str, ...], paths: dict[str, Path], task: Task, seed: int) -> Query:
    """The question with other pictures in their places; none of its own is among them."""
    own = set(_contents(query))
    if not own.isdisjoint(names):  # they share one, or nobody else has as many
        others = sorted(paths.keys() - own)
        if len(others) < len(names):
            raise UserError(
                f"{task.name}: question {query.id} has {len(names)} pictures and there are {len(others)} others; "
                f"expected as many for its blind arm; set arms to [sighted]"
            )
        names = tuple(random.Random(f"blind/{seed}/{query.id}").sample(others, len(names)))
    given = iter(paths[name] for name in names)
    context = tuple(next(given) if isinstance(item, Path) else item for item in query.context)
    return replace(query, context=context, picture=next(given), others=tuple(given))


def derangement(names: Sequence[Name], seed: int) -> dict[Name, Name]:
    """A random permutation in one single cycle (Sattolo 1986), so that nothing is mapped to itself."""
    chance, images = random.Random(f"derangement/{seed}"), list(names)
    for last in range(len(images) - 1, 0, -1):
        other = chance.randrange(last)
        images[last], images[other] = images[other], images[last]
    return dict(zip(names, images, strict=True))


def _trade(query: Query, task: Task) -> Query:
    """Each picture of the context moves to the place of the one before."""
    pictures = [item for item in query.context if isinstance(item, Path)]
    if len({content(picture) for picture in pictures}) < len(pictures) or len(pictures) < 2:
        raise UserError(
            f"{task.name}: question {query.id} has {len(pictures)} pictures in its context; expected distinct"
        )
    moved = iter([*pictures[1:], pictures[0]])
    return replace(query, context=tuple(next(moved) if isinstance(item, Path) else item for item in query.context))


def _shuffled(count: int, chance: random.Random) -> Iterator[int]:
    """0 .. count - 1 in random order, one at a time: a pool may be millions and a few are wanted."""
    seen: set[int] = set()
    while len(seen) < count:
        at = chance.randrange(count)
        if at not in seen:
            seen.add(at)
            yield at
