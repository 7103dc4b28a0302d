"""How long a checkpoint of a 2B model stops training: ours, written while steps run, beside torch.save of the same."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from benchmarks.machine import RESULTS, append, where
from benchmarks.train import SIZES, our_batch, our_model
from mm1.model.pieces import Pieces
from mm1.runs import Run
from mm1.train.background import Background

MOST_STEPS = 500  # while one is written


def checkpoint(
    *,
    size: Literal["1.2b", "3b", "tiny"] = "1.2b",
    rows: int = 1,
    saves: int = 2,
    steps: int = 6,
    peer: bool = True,
    folder: Path | None = None,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Train, save meanwhile, and print for each checkpoint what it cost.

    Args:
        size: Decoder beside a ViT-H/14: 1.2b is 1.95 B parameters in all, 23 GB of weights and moments in
            fp32; ``tiny`` runs on a CPU to see that everything does.
        rows: Rows of a step, of 4,096 positions and 16 pictures each.
        saves: Checkpoints of ours.
        steps: Timed without one, before; the median is what a step takes.
        peer: Whether to time torch.save too.
        folder: Where to write; needs room for one checkpoint. A temporary one, if not given.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", small=size == "tiny", flag="--size tiny")
    place = Path(tempfile.mkdtemp(prefix="mm1-checkpoint-", dir=folder))
    try:
        lines = _compare(size, rows, saves, steps, peer, device, Run(place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    about |= {"size": size, "rows": rows}
    print(append(results / "checkpoint.csv", [{**about, **line, "note": note} for line in lines]))


def _compare(
    size: str, rows: int, saves: int, steps: int, peer: bool, device: torch.device, run: Run
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = our_model(SIZES[size], device, False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    batch = our_batch(SIZES[size], device, rows, True)
    run.last.parent.mkdir()

    def made() -> dict[str, Any]:
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        return {"state_dict": weights, "optimizer_states": [optimizer.state_dict()]}

    def step() -> float:
        started_s = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            sums = model.losses(batch)
        (sums.cross_entropy / sums.targets).backward()
        writer.before_change()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _settle(device)
        return time.perf_counter() - started_s

    writer = Background(run, device, lambda _: None)
    step()
    started_s = time.perf_counter()
    writer.prepare(made())
    slow = [step() for _ in range(2)]
    assert writer.stage.ahead is not None
    writer.stage.ahead.join()
    ahead_s = time.perf_counter() - started_s
    usual_s = median(step() for _ in range(steps))
    held = sum(chunk.nbytes for chunk in writer.stage.chunks)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters, a step takes {usual_s:.3f} s; "
        f"{held / 1e9:.1f} GB of host memory were asked for in {ahead_s:.1f} s, the two steps meanwhile took "
        f"{' and '.join(f'{s:.3f}' for s in slow)} s",
        flush=True,
    )
    names = [name for name, _ in model.named_buffers()]
    lines = []
    for number in range(1, saves + 1):
        lines.append(_told(_ours(writer, run, number, made, names, step, usual_s)))
    writer.close()
    if peer:
        lines.append(_told(_peer(made(), run.folder / "peer.pt", device)))
    return lines


def _told(line: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{line['contestant']:28} stopped {line['stopped_s']:7.3f} s (call {line['call_s']:.3f} s), in all "
        f"{line['lost_s']:7.3f} s lost, written in {line['written_s']:6.1f} s, {line['gb']:.1f} GB",
        flush=True,
    )
    return line


def _ours(
    writer: Background,
    run: Run,
    number: int,
    made: Callable[[], dict[str, Any]],
    names: list[str],
    step: Callable[[], float],
    usual_s: float,
) -> dict[str, Any]:
    """Training stops for the call, and where the next step waits for the copy; others may be slower meanwhile."""
    started_s = time.perf_counter()
    writer.save(number, run.last, made, names)
    call_s = time.perf_counter() - started_s
    assert writer.job is not None
    assert writer.job.future is not None
    taken = [step()]
    stopped_s = call_s + max(0.0, taken[0] - usual_s)
    print(f"checkpoint {number}: training stopped for {stopped_s:.3f} s; writing goes on", flush=True)
    while not writer.job.future.done() and len(taken) < MOST_STEPS:
        taken.append(step())
    writer.wait()
    written_s = time.perf_counter() - started_s
    found = Pieces(run.last)
    size = sum(path.stat().st_size for path in found.folder.iterdir())
    shutil.rmtree(found.folder)  # there may not be room for two
    lost_s = call_s + sum(taken) - usual_s * len(taken)
    return {
        "contestant": f"ours, {'first' if number == 1 else 'later'}",
        "step_s": round(usual_s, 4),
        "call_s": round(call_s, 3),
        "stopped_s": round(stopped_s, 3),
        "lost_s": round(lost_s, 3),
        "written_s": round(written_s, 2),
        "gb": round(size / 1e9, 2),
    }


def _peer(state: dict[str, Any], path: Path, device: torch.device) -> dict[str, Any]:
    """One file, through to the disk; nothing else happens meanwhile."""
    _settle(device)
    started_s = time.perf_counter()
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    took_s = round(time.perf_counter() - started_s, 3)
    size = path.stat().st_size
    path.unlink()
    times = {"call_s": took_s, "stopped_s": took_s, "lost_s": took_s, "written_s": round(took_s, 2)}
    return {"contestant": "torch.save", "step_s": "", **times, "gb": round(size / 1e9, 2)}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
