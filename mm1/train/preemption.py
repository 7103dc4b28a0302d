"""Asked to go, training saves after the step at hand and ends with a code that says: start me again.

SIGTERM comes before a machine is taken away, and SLURM sends a signal of the user's choice before a job's time is up
(``sbatch --signal=USR1@120 --requeue``). Lightning answers in the middle of a step and with files of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from types import FrameType

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment

from mm1.train.checkpoints import BetweenSteps, SaveLast
from mm1.train.module import Objective

log = logging.getLogger(__name__)

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a failure for now, to be tried again


class Preemption(BetweenSteps):
    """Save and leave with code 75 after a SIGTERM, or the signal before a SLURM job's end (SIGUSR1 elsewhere as well).

    A job of SLURM that may be requeued is, after that last signal; after a SIGTERM SLURM itself decides.

    Args:
        saving: What saves; it stands before this in the list of callbacks.
    """

    def __init__(self, saving: SaveLast) -> None:
        super().__init__()
        self.saving = saving
        self.asked: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen, in the place of Lightning, which takes its own ears back at the end."""
        super().on_train_start(trainer, pl_module)
        slurm = _slurm(trainer)
        self.warning = slurm.requeue_signal if slurm and slurm.requeue_signal else signal.SIGUSR1
        for number in (signal.SIGTERM, self.warning):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def between(self, trainer: lightning.Trainer, step: int, last: bool) -> None:
        """Leave, once a rank was asked to.

        Raises:
            SystemExit: With code 75; everything is saved.
        """
        module = trainer.lightning_module
        assert isinstance(module, Objective)
        if last or not module.over_hosts([self.asked is not None])[0]:
            return
        if self.saving.saved_step != step:
            self.saving.save(trainer, step)
        self.saving.wait()
        if trainer.is_global_zero:
            log.warning("asked to leave: saved after step %d of %d; the same command goes on", step, trainer.max_steps)
        if self.asked == self.warning and trainer.is_global_zero and (slurm := _slurm(trainer)) and slurm.auto_requeue:
            requeue()
        raise SystemExit(REQUEUE)


def requeue() -> None:
    """Put this job of SLURM, or this task of an array, into the queue again."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    name = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        ended = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    except OSError as error:
        log.warning("job %s could not be requeued: scontrol cannot be run (%s)", name, error.strerror)
        return
    if ended.returncode:
        log.warning("job %s could not be requeued: %s", name, ended.stderr.strip())


def _slurm(trainer: lightning.Trainer) -> SLURMEnvironment | None:
    environment = trainer._accelerator_connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) else None
