"""Work spread over processes with results in order, so that what is written never depends on how many there were."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mm1.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")

CHUNK = 32
_function: Any = None


def ordered(function: Callable[[In], Out], values: Iterable[In], workers: int, chunk: int = CHUNK) -> Iterator[Out]:
    """``map(function, values)`` in ``workers`` processes, a bounded number of values ahead.

    Args:
        function: Copied to each process once, so it may carry large tables.
        values: Read as they are needed.
        workers: Processes; 1 works in this one.
        chunk: Values that go to a process at a time.

    Raises:
        UserError: A process was killed from outside, which is nearly always for memory.
    """
    if workers == 1:
        yield from map(function, values)
        return
    values = iter(values)
    pending: deque[Future[list[Out]]] = deque()
    with ProcessPoolExecutor(workers, initializer=_keep, initargs=(function,)) as pool:
        try:
            while together := list(itertools.islice(values, chunk)):
                pending.append(pool.submit(_run, together))
                if len(pending) > 3 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"one of {workers} worker processes was killed, likely for memory; lower workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _keep(function: Any) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops for both
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody; its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(chunk: list[Any]) -> list[Any]:
    return [_function(value) for value in chunk]
