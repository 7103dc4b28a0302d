"""What became of a run of :mod:`mm1.study.arms`: its loss, its speed, and what its routers did at the end.

"At the end" is the mean over the last fifth of the steps, so that the chance of one step's tokens is no collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import mean
from typing import Any

import numpy as np

from mm1.errors import UserError
from mm1.runs import DEAD, Run
from mm1.study.compare import Trained

END = 0.2  # of the steps


@dataclass(frozen=True)
class Outcome:
    """Numbers of one run, or means over several; those of routers are None in a dense model.

    Args:
        loss: Held-out loss after the last step, in nats a target.
        max_load: What the busiest expert of any layer gets, over an even share.
        dead: Experts of all layers that get less than a hundredth of an even share.
        drop_rate: Share of choices that found no room.
        coverage: Share of tokens that at least one expert took.
        entropy: Of the shares that a token gives to experts, over that of even ones.
        z: Squared logsumexp of the router's logits.
        visited: Experts that a token visits.
        used: Experts of a layer that are not dead.
        positions_per_s: From the first metrics on, so without start.
        flops_per_position: Of training.
        active: Parameters that a position meets.
        total: All parameters.
        minutes: Of training, without start.
    """

    loss: float
    max_load: float | None
    dead: float | None
    drop_rate: float | None
    coverage: float | None
    entropy: float | None
    z: float | None
    visited: float | None
    used: float | None
    positions_per_s: float
    flops_per_position: float
    active: float
    total: float
    minutes: float


def read(run: Run) -> Outcome:
    """The outcome of a finished run.

    Raises:
        UserError: It is none, is not finished, or has diverged.
    """
    about = run.about()
    if about.get("diverged"):
        raise UserError(f"{run.folder} has diverged; expected a run whose loss stayed finite")
    if not about.get("finished"):
        raise UserError(f"{run.folder} is not finished; expected a run that was trained to its last step")
    trained = Trained.read(run.folder)
    first, last = trained.train[0], trained.train[-1]
    counts = about["parameters"]
    return Outcome(
        loss=trained.val[-1]["loss"],
        **_routing(trained.experts, last["step"]),
        positions_per_s=_speed(first, last),
        flops_per_position=last["flops"] / last["positions"],
        active=counts["active"],
        total=counts["total"],
        minutes=last["time_s"] / 60,
    )


def over_seeds(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of each number."""
    means: dict[str, Any] = {}
    for field in fields(Outcome):
        values = [getattr(outcome, field.name) for outcome in outcomes]
        means[field.name] = None if None in values else mean(values)
    return Outcome(**means)


def _speed(first: dict[str, Any], last: dict[str, Any]) -> float:
    if first is last:
        return float(last["positions_per_s"])
    return float((last["positions"] - first["positions"]) / (last["time_s"] - first["time_s"]))


def _routing(lines: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """What stands in the lines of the last steps, each line counted by the steps that it is about."""
    names = ("max_load", "dead", "drop_rate", "coverage", "entropy", "z", "visited", "used")
    if not lines:
        return dict.fromkeys(names)
    end = [line for line in lines if line["step"] > steps * (1 - END)]
    weights = [line["steps"] for line in end]

    def average(key: str) -> np.ndarray:
        return np.average([line[key] for line in end], axis=0, weights=weights)

    load_LE = average("load")
    experts = load_LE.shape[1]
    relative_LE = experts * load_LE / load_LE.sum(1, keepdims=True)
    dead = int((relative_LE < DEAD).sum())
    values = (
        relative_LE.max(),
        dead,
        average("dropped").mean(),
        average("covered").mean(),
        average("entropy").mean() / math.log(experts) if experts > 1 else 1.0,
        average("z").mean(),
        average("visited").mean(),
        experts - dead / len(load_LE),
    )
    return dict(zip(names, map(float, values), strict=True))
