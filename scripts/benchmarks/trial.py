"""How fast one loader worker is: a trial counts what arrives for some seconds, and what the worker's processor did.

Wall time is what training sees; on a machine that is shared it also measures the neighbours, so a trial reports
pictures per second of the worker's own processor time beside it. A trial is one process and prints one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

WARM_UP = 4  # batches that the worker fetched before anybody waited for them


def speed(arrivals: Iterable[tuple[int, int]], seconds: float) -> dict[str, float]:
    """Pictures and positions per second.

    Args:
        arrivals: Pictures and positions of each batch, from this process or one worker of it.
        seconds: How long to count.
    """
    stream: Iterator[tuple[int, int]] = iter(arrivals)
    for _ in range(WARM_UP):
        next(stream)
    worker = next(iter(multiprocessing.active_children()), None)
    start, spent = time.perf_counter(), _processor_seconds(worker)
    images = positions = 0
    while time.perf_counter() - start < seconds:
        arrived = next(stream)
        images, positions = images + arrived[0], positions + arrived[1]
    elapsed = time.perf_counter() - start
    spent = _processor_seconds(worker) - spent
    return {
        "images_s": images / elapsed,
        "images_cpu_s": images / max(spent, 1e-9),
        "positions_s": positions / elapsed,
    }


def _processor_seconds(worker: Any) -> float:
    """Processor time of a worker with all its threads, of this process if there is none."""
    if worker is None:
        return time.process_time()
    ticks = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def report(arrivals: Callable[..., Iterable[tuple[int, int]]]) -> None:
    """The main function of a contestant: arguments as JSON in, figures as JSON out."""
    asked = json.loads(sys.argv[1])
    seconds = asked.pop("seconds")
    stream = arrivals(**asked)
    print(json.dumps(speed(stream, seconds)), flush=True)
    os._exit(0)  # whatever a loader would still do to end its worker is not our time; the worker ends with its parent
