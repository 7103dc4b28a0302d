"""The grid of small sizes and rates that the rate law is fitted to: one process a cell, results kept in a CSV."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mm1.errors import UserError
from mm1.runs import Run

COLUMNS = ("n", "lr", "loss", "layers", "width", "steps")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Grid:
    """What is trained.

    Args:
        shapes: (layers, width) of each size.
        rates: Peak rates, each tried at each size.
        corpus: Shards.
        steps: Training steps of each run.
        config: Training YAML.
        model: Model YAML whose decoder is resized; its head width and its ratio of FFN to width stay.
    """

    shapes: list[tuple[int, int]]
    rates: list[float]
    corpus: Path
    steps: int
    config: Path = CONFIGS / "train" / "tiny_pretrain.yaml"
    model: Path = CONFIGS / "model" / "tiny.yaml"

    def resized(self, layers: int, width: int) -> dict[str, Any]:
        """The model YAML with another decoder.

        Raises:
            UserError: The width is no multiple of the head width.
        """
        model = yaml.safe_load(self.model.read_text())
        decoder = model["init_args"]["decoder"]["init_args"]
        head_width = decoder["width"] // decoder["heads"]
        if width % head_width:
            raise UserError(
                f"--sizes asks for width {width}; expected a multiple of {head_width}, "
                f"the head width of {self.model.name}"
            )
        ffn_width = 8 * round(width * decoder["ffn_width"] / decoder["width"] / 8)
        decoder |= {"layers": layers, "width": width, "heads": width // head_width, "ffn_width": ffn_width}
        return model


def run_grid(grid: Grid, results: Path, runs: Path) -> None:
    """Train every cell that ``results`` does not hold yet and append it; interrupted, it goes on where it stopped."""
    done = _cells(results)
    cells = list(itertools.product(grid.shapes, grid.rates))
    for i, ((layers, width), rate) in enumerate(cells, 1):
        name = f"{layers}x{width}-{rate:g}-{grid.steps}steps"
        if (layers, width, rate, grid.steps) in done:
            print(f"[{i}/{len(cells)}] {name}: already in {results}", flush=True)
            continue
        print(f"[{i}/{len(cells)}] {name}: training", flush=True)
        size, loss = _train(grid, layers, width, rate, Run(runs / name))
        _append(results, (size, rate, loss, layers, width, grid.steps))
        print(f"[{i}/{len(cells)}] {name}: N = {size:,}, held-out loss {loss:.4f}", flush=True)


def _train(grid: Grid, layers: int, width: int, rate: float, run: Run) -> tuple[int, float]:
    """N and the final held-out loss of one run; a run that diverged has the loss nan."""
    run.folder.mkdir(parents=True, exist_ok=True)
    model = run.folder / "model.yaml"
    model.write_text(yaml.safe_dump(grid.resized(layers, width), sort_keys=False))
    command = [sys.executable, "-m", "mm1.train", "fit", "--config", str(grid.config), "--run", str(run.folder)]
    command += ["--model.model", str(model), "--model.optimizer.lr", repr(rate), "--data.corpus", str(grid.corpus)]
    ends = ["--trainer.max_steps", str(grid.steps), "--validate_every_n_steps", str(grid.steps)]
    log = run.folder / "log.txt"
    with log.open("ab") as lines:
        ended = subprocess.run([*command, *ends], stdout=lines, stderr=subprocess.STDOUT)
    about = run.about() if (run.folder / "run.json").exists() else {}
    if ended.returncode and not about.get("diverged"):
        raise UserError(f"a run of the grid ended with exit code {ended.returncode}, expected 0; its log is {log}")
    held_out = [line["loss"] for line in run.history("val")]
    loss = float("nan") if about.get("diverged") or not held_out else held_out[-1]
    return about["parameters"]["dense_twin"], loss


def _cells(results: Path) -> set[tuple[int, int, float, int]]:
    """(layers, width, rate, steps) of the rows that are there.

    Raises:
        UserError: The file has columns that this grid cannot append to.
    """
    if not results.exists():
        return set()
    with results.open(newline="", errors="replace") as lines:
        table = csv.DictReader(lines)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise UserError(
                f"{results} has columns {','.join(table.fieldnames or [])}; expected {','.join(COLUMNS)} to append to"
            )
        try:
            return {(int(row["layers"]), int(row["width"]), float(row["lr"]), int(row["steps"])) for row in table}
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{results}, line {table.line_num} is no row of a grid ({error}); expected numbers to append to"
            ) from None


def _append(results: Path, row: tuple[Any, ...]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    new = not results.exists()
    with results.open("a", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerows([COLUMNS, row] if new else [row])
