"""Who does the work: processes of this machine, or a Ray cluster. Both are a map over parts; results are the same."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from data_pipelines.workers import ordered
from mm1.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")


class Engine(ABC):
    """A map over values that may run anywhere."""

    @abstractmethod
    def map(self, function: Callable[[In], Out], values: Sequence[In]) -> Iterator[tuple[int, Out]]:
        """Place and result of every value, in any order."""


class Local(Engine):
    """Processes of this machine.

    Args:
        workers: How many; 1 works in this one.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[In], Out], values: Sequence[In]) -> Iterator[tuple[int, Out]]:
        """As :meth:`Engine.map`, in order."""
        yield from enumerate(ordered(function, values, min(self.workers, max(1, len(values))), chunk=1))


class Ray(Engine):
    """Ray Data, on the cluster that ``ray.init`` finds (RAY_ADDRESS), or on this machine.

    The corpus folder has to be one that all machines see.

    Args:
        workers: Processors of a Ray that is started here; 0 takes all. A cluster has its own.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, workers: int = 0) -> None:
        try:
            import ray
            import ray.data
        except ImportError:
            raise UserError("ray is not installed; pip install 'mm1[ray]', or leave out --engine ray") from None
        self.ray, self.workers = ray, workers
        if not ray.is_initialized():
            here: dict[str, Any] = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
            )
            ray.init(**here, log_to_driver=False)

    def map(self, function: Callable[[In], Out], values: Sequence[In]) -> Iterator[tuple[int, Out]]:
        """As :meth:`Engine.map`, as results come."""
        if not values:
            return
        shared = self.ray.put((function, list(values)))

        def run(row: dict[str, Any]) -> dict[str, Any]:
            import ray

            work, given = ray.get(shared)
            try:
                return {"place": row["id"], "result": pickle.dumps((work(given[row["id"]]), None))}
            except UserError as error:
                return {"place": row["id"], "result": pickle.dumps((None, str(error)))}

        data = self.ray.data.range(len(values), override_num_blocks=len(values)).map(run)
        for row in data.iter_rows():
            result, error = pickle.loads(row["result"])
            if error is not None:
                raise UserError(error)
            yield int(row["place"]), result
