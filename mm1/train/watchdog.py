"""A rank that hangs holds up all others, which do not know for whom they wait: every rank says where it is.

Named is who gives no sign any more, as a machine that stands still; else who is least far, as those that wait for
it are further; and of those at the same place who is not in a call that waits for others. Signs are files in the run
folder, which a thread writes; training itself only counts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from mm1.errors import UserError, at_least
from mm1.runs import Run, read_object, write_json

HANGS = 70  # EX_SOFTWARE of sysexits.h
WAITS = os.path.join("torch", "distributed")  # code of calls that wait for other ranks

Sign = dict[str, Any]


class Watchdog(Callback):
    """End all ranks with code 70 when training has not moved for too long, and say which rank holds it up, and where.

    Args:
        timeout_s: How long nothing may move, evaluations and writing of checkpoints included; 0 waits for ever.
    """

    def __init__(self, timeout_s: float = 1800) -> None:
        at_least(0, {"hang_timeout_s": timeout_s})
        self.timeout_s = timeout_s
        self.sign, self.place, self.moved_s = 0, "setup", time.monotonic()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to watch the thread that trains."""
        if not self.timeout_s:
            return
        self.trainer, self.trained_by = trainer, threading.get_ident()
        self.rank, self.folder = trainer.global_rank, Run(trainer.default_root_dir).folder / "heartbeats"
        self.folder.mkdir(exist_ok=True)
        self._move("the first batch")
        self._give_sign()  # in the place of an earlier run's
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()

    def _move(self, place: str) -> None:
        self.sign, self.place, self.moved_s = self.sign + 1, place, time.monotonic()

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A batch has come."""
        self._move("the forward pass")

    def on_before_backward(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The loss is known."""
        self._move("the backward pass")

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *_: Any) -> None:
        """So are gradients."""
        self._move("the optimizer's step")

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The next batch, validation, an evaluation or a checkpoint is next."""
        self._move("what follows a step, or the next batch")

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A validation batch has come."""
        self._move("validation")

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Validation is done."""
        self._move("what follows validation, or the next batch")

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Nothing is left to watch."""
        self._leave()

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Nor is there after an error."""
        self._leave()

    def _leave(self) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join()

    def _watch(self) -> None:
        every_s = min(30.0, self.timeout_s / 5)
        while not self.ended.wait(every_s):
            still_s = time.monotonic() - self.moved_s
            with contextlib.suppress(OSError):  # a full disk is for others to tell of
                self._give_sign()
            if still_s > self.timeout_s:
                self._tell()
                os._exit(HANGS)  # the thread that trains answers nobody

    def _give_sign(self) -> None:
        frames = traceback.extract_stack(sys._current_frames().get(self.trained_by))
        sign = {"rank": self.rank, "sign": self.sign, "step": self.trainer.global_step + 1, "in": self.place}
        sign |= {"waits": any(WAITS in frame.filename for frame in frames)}
        write_json(self._file(self.rank), {**sign, "machine": platform.node(), "process": os.getpid()})
        self._file(self.rank).with_suffix(".stack").write_text("".join(traceback.format_list(frames)))

    def _tell(self) -> None:
        signs = {rank: self._read(rank) for rank in range(self.trainer.world_size)}
        named = "; ".join(_told(rank, sign) for rank, sign in held_up_by(signs, self.timeout_s / 2).items())
        stacks = f"{self.folder}/rank-*.stack says where in the code ranks are; the same command goes on"
        told = f"training has not moved for {self.timeout_s:g} seconds (hang_timeout_s); it waits for {named}; {stacks}"
        print(f"error: {told}", file=sys.stderr, flush=True)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _read(self, rank: int) -> Sign | None:
        try:
            return {**read_object(self._file(rank), "a sign of a rank"), "at_s": self._file(rank).stat().st_mtime}
        except (UserError, OSError):
            return None


def held_up_by(signs: dict[int, Sign | None], silent_s: float) -> dict[int, Sign | None]:
    """Those of the ranks that the others wait for, as far as their last signs tell."""
    known = {rank: sign for rank, sign in signs.items() if sign is not None}
    if len(known) < len(signs):
        return {rank: None for rank in signs if rank not in known}
    newest_s = max(sign["at_s"] for sign in known.values())  # by the clock of the storage
    if silent := {rank: sign for rank, sign in known.items() if sign["at_s"] < newest_s - silent_s}:
        return {**silent}
    least = min(sign["sign"] for sign in known.values())
    behind = {rank: sign for rank, sign in known.items() if sign["sign"] == least}
    return {rank: sign for rank, sign in behind.items() if not sign["waits"]} or {**behind}


def _told(rank: int, sign: Sign | None) -> str:
    if sign is None:
        return f"rank {rank}, which never gave a sign"
    where = f"at step {sign['step']}, in {sign['in']}"
    return f"rank {rank} ({sign['machine']}, process {sign['process']}), last heard of {where}"
