"""Where the numbers of ``metrics.jsonl`` go beside it: TensorBoard, if nothing is said, trackio, or Lightning's own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mm1.errors import UserError


class TensorBoard(Logger):
    """Event files in ``tensorboard/`` of the run folder, for ``tensorboard --logdir runs``.

    A resumed run is one curve: what an earlier life wrote beyond the checkpoint is taken back.
    Lines are written by the thread that trains, few as they are: a library's own thread and queue would hang at the end
    of a run whose disk is full.

    Args:
        run: The run folder.
    """

    def __init__(self, run: str | Path) -> None:
        super().__init__()
        self.folder = Path(run) / "tensorboard"
        self.writer: Any = None

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.parent.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each curve; the first ones of a process take the place of those from there on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if self.writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"), f".{os.getpid()}.{step}")
            self.writer.write_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self.writer.flush()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in ``config.yaml``."""

    def finalize(self, status: str) -> None:
        """No more will come; what is wrong with the disk has been said, or is about to be."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


class Trackio(Logger):
    """Curves in trackio, which keeps them on this machine or in a Hugging Face Space.

    Args:
        project: Name that runs are kept under.
        name: Of this run there; the same name goes on with the same run.
        space_id: A Space to write to, such as ``me/mm1``; this machine if not given.
    """

    def __init__(self, project: str = "mm1", name: str | None = None, space_id: str | None = None) -> None:
        super().__init__()
        self.project, self.called, self.space_id = project, name, space_id
        self.run: Any = None
        try:
            import trackio
        except ImportError:
            raise UserError(
                "trainer.logger is Trackio, whose package is not there; pip install 'mm1[trackio]'"
            ) from None
        self.trackio: Any = trackio

    @property
    def name(self) -> str:
        """Of the project."""
        return self.project

    @property
    def version(self) -> str | None:
        """Of the run."""
        return self.called

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each curve."""
        if self.run is None:
            self.run = self.trackio.init(self.project, name=self.called, space_id=self.space_id, resume="allow")
        self.run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in ``config.yaml``."""

    def finalize(self, status: str) -> None:
        """Bring what is on its way there."""
        if self.run is not None:
            self.trackio.finish()
            self.run = None
