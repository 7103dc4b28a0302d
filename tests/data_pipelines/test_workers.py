"""Results in order from any number of processes, and a process that dies is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from data_pipelines.workers import CHUNK, ordered
from mm1.errors import UserError


def square(value: int) -> int:
    return value * value


def die(value: int) -> int:
    if value == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def complain(value: int) -> int:
    raise UserError(f"value {value}")


@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_their_order(workers: int) -> None:
    assert list(ordered(square, range(500), workers)) == [n * n for n in range(500)]
    assert list(ordered(square, [], workers)) == []


def test_values_are_read_a_bounded_number_ahead() -> None:
    read = 0

    def values() -> Iterator[int]:
        nonlocal read
        for value in range(100_000):
            read += 1
            yield value

    results = ordered(square, values(), 2)
    assert next(results) == 0
    assert read <= 8 * CHUNK
    results.close()


def test_a_killed_process_is_a_sentence_not_a_hang() -> None:
    with pytest.raises(UserError, match="one of 2 worker processes was killed, likely for memory; lower workers"):
        list(ordered(die, range(200), 2))


def test_an_error_of_the_function_comes_through() -> None:
    with pytest.raises(UserError, match="value 0"):
        list(ordered(complain, range(3), 2))


def test_workers_end_with_a_parent_that_was_killed() -> None:
    code = "import sys; from data_pipelines.workers import ordered; [print(x) for x in ordered(str, sys.stdin, 3)]"
    with subprocess.Popen([sys.executable, "-uc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(b"a line\n" * 20 * CHUNK)
        parent.stdin.flush()
        assert parent.stdout.readline() == b"a line\n"
        parent.kill()
        parent.communicate(timeout=20)  # a worker that lived on would keep the pipe open
