"""Two runs beside each other: what differs, and held-out loss at equal positions, FLOPs and seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mm1.errors import UserError
from mm1.runs import Run

# Data settings that do not decide which batches come in which order; nor do ranks and micro-batches (mm1.data.streams).
HARMLESS = ("workers", "threads", "val_batch_rows", "timeout_s", "max_damaged_share")
KINDS = {"pretrain": "pre-training", "sft": "instruction tuning"}
PLACES = ("run", "trainer.default_root_dir", "init_from", "model.init_from")  # where a run lies, not what it is
BUDGETS = {"positions": "positions", "flops": "FLOPs", "time_s": "seconds"}


@dataclass(frozen=True)
class Trained:
    """One run folder, read.

    Args:
        name: What the page calls it: ``pre-training`` or ``instruction tuning``, as the run says.
        about: run.json.
        config: config.yaml, flattened to dotted keys.
        train: Metric lines of this split; ``val`` and ``experts`` likewise.
        scores: eval/*/scores.json by name.
        folder: Where it is.
    """

    name: str
    about: dict[str, Any]
    config: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    experts: list[dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    folder: Path

    @classmethod
    def read(cls, folder: Path, name: str = "") -> Trained:
        """Read a run folder.

        Raises:
            UserError: It is none, or holds no metrics to compare.
        """
        run = Run(folder)
        about = run.about()
        lines = run.history()
        if not lines:
            raise UserError(f"{run.metrics} holds no metrics; expected a run that mm1-train has trained for some steps")
        config = _read_yaml(run.config) if run.config.exists() else {}
        by_split = {split: [line for line in lines if line["split"] == split] for split in ("train", "val", "experts")}
        called = name or KINDS.get(about["kind"], about["kind"])
        return cls(called, about, dict(_flat(config)), **by_split, scores=run.scores(), folder=folder)

    def curve(self, key: str, split: str = "val", by: str = "positions") -> tuple[list[float], list[float]]:
        """Points (x, y) of a named number over ``positions``, ``flops`` or ``time_s``."""
        lines = self.val if split == "val" else self.train
        points = [(line[by], line[key]) for line in lines if line.get(key) is not None and by in line]
        return [x for x, _ in points], [y for _, y in points]

    @property
    def last(self) -> dict[str, Any]:
        """The newest metric line that counts positions."""
        return max((*self.train, *self.val), key=lambda line: line["positions"])


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(errors="replace"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({error}); expected the configuration that mm1-train wrote") from None


@dataclass(frozen=True)
class Side:
    """One of the two: ``a`` and ``b`` are also its colour.

    Args:
        key: ``a`` or ``b``.
        name: What the page calls it.
        runs: Its runs in order.
    """

    key: str
    name: str
    runs: tuple[Trained, ...]


@dataclass(frozen=True)
class Order:
    """Whether two runs saw the same batches in the same order.

    Args:
        same: They did.
        differing: Settings that order the data and differ, with both values.
        checked: Steps at which both logged equal positions.
        parted: The first step at which they did not, if any.
    """

    same: bool
    differing: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    checked: int = 0
    parted: int | None = None


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def differences(a: Trained, b: Trained) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, with both values; a key that one side lacks counts as None there."""
    keys = [key for key in dict.fromkeys((*a.config, *b.config)) if key not in PLACES]
    return {key: (a.config.get(key), b.config.get(key)) for key in keys if a.config.get(key) != b.config.get(key)}


def order(a: Trained, b: Trained) -> Order:
    """Whether both saw the same batches in the same order: by their settings, and by the positions they logged."""
    orders = {
        key: values
        for key, values in differences(a, b).items()
        if key.startswith("data.") and key.rsplit(".", 1)[-1] not in HARMLESS
    }
    seen_a, seen_b = ({line["step"]: line["positions"] for line in stage.train} for stage in (a, b))
    common = sorted(seen_a.keys() & seen_b.keys())
    parted = next((step for step in common if seen_a[step] != seen_b[step]), None)
    known = bool(a.config and b.config and common)
    return Order(known and not orders and parted is None, orders, len(common), parted)


def at_equal(a: Trained, b: Trained, key: str = "loss") -> list[dict[str, Any]]:
    """Held-out loss of both where the one that used less of a budget stopped, between evaluations by straight lines.

    Returns:
        Per budget (positions, FLOPs, seconds) a row ``budget, spent, a, b``; none where one of the curves has not
        begun by then, for nothing is known before a run's first evaluation.
    """
    rows = []
    for by, name in BUDGETS.items():
        (x_a, y_a), (x_b, y_b) = a.curve(key, by=by), b.curve(key, by=by)
        spent = min(x_a[-1], x_b[-1]) if x_a and x_b else 0
        if x_a and x_b and spent >= max(x_a[0], x_b[0]):
            row = {"budget": name, "spent": spent}
            rows.append(row | {"a": float(np.interp(spent, x_a, y_a)), "b": float(np.interp(spent, x_b, y_b))})
    return rows


def sources(*runs: Trained) -> list[str]:
    """Sources that any of the runs held out, in the order they were logged; none where one is all there is."""
    keys = [key for run in runs for line in run.val for key in line if key.startswith("loss/")]
    names = list(dict.fromkeys(key.removeprefix("loss/") for key in keys))
    return names if len(names) > 1 else []


def sides(run_a: Path, run_b: Path) -> tuple[Side, Side]:
    """Two run folders, each named by its folder, or by more of its path where both are called the same."""
    a, b = Trained.read(run_a), Trained.read(run_b)
    names = [run_a.resolve().name, run_b.resolve().name]
    if names[0] == names[1]:
        names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in (run_a, run_b)]
    return Side("a", names[0], (a,)), Side("b", names[1], (b,))
