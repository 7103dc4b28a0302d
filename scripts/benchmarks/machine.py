"""What a figure depends on besides our code: machine, load, versions; and the CSV files where figures are kept."""

from __future__ import annotations

import csv
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mm1.errors import UserError

FOLDER = Path(tempfile.gettempdir()) / "mm1-benchmark"  # where corpora are kept from run to run
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


def machine() -> dict[str, Any]:
    """Date, processor, cores and how busy they were when asked."""
    load = round(os.getloadavg()[0], 2)
    return {"date": date.today().isoformat(), "cpu": _processor(), "cores": os.cpu_count(), "load": load}


def where(*packages: str, small: bool, flag: str) -> tuple[torch.device, dict[str, Any]]:
    """The first GPU, or the CPU where there is none, and what a figure depends on there.

    Args:
        packages: Whose versions count.
        small: Whether a CPU will do.
        flag: What makes it do, for the error.

    Raises:
        UserError: There is no GPU and a CPU will not do.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not small and device.type == "cpu":
        raise UserError(f"no CUDA device; expected a GPU ({flag} runs on a CPU)")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return device, {**machine(), "card": card, **versions(*packages)}


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; ``-`` for what is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Add rows to a CSV file, with a header if it is new; returns what was done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    return f"added {len(rows)} rows to {path}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
