"""Sharded checkpoints, written while training goes on, every rank its own part (torch.distributed.checkpoint).

A step pays for a copy to host memory (:mod:`mm1.train.stage`), a thread writes from there. The folder is written under
a temporary name and renamed when all ranks have brought theirs to the disk; ``last.ckpt`` and ``best.ckpt`` are
links, which are moved after that. So a kill at any moment leaves a whole checkpoint, and what it tore off never has
the name of one. What goes wrong on any rank is known to all at the same step.
"""

from __future__ import annotations

import io
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.tensor import DTensor, Replicate

from mm1.errors import UserError
from mm1.model.pieces import MOMENTS, WEIGHTS, take_apart
from mm1.runs import Run
from mm1.train.placing import boxed
from mm1.train.shard_writer import ShardWriter, link, tidy
from mm1.train.stage import Stage
from mm1.train.strategy import Sharded

PARTS = "parts"
PATIENCE = timedelta(hours=2)  # of ranks with the slowest disk
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank writes by itself


@dataclass
class Job:
    """A checkpoint on its way to the disk.

    Args:
        step: The step that it was made after.
        folder: Its name when it is whole.
        names: What is to lead to it then.
        future: Of the thread that writes.
    """

    step: int
    folder: Path
    names: list[Path]
    future: Future[Any] | None = None
    told: bool = False  # whether this rank has asked how it ended
    whole: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def name(self, name: Path) -> None:
        """Another name, now or when it is whole."""
        with self.lock:
            if self.whole:
                link(name, self.folder)
            else:
                self.names.append(name)

    def be_whole(self) -> None:
        """Give it its names."""
        with self.lock:
            for name in self.names:
                link(name, self.folder)
            self.whole = True


class Background:
    """Writes the checkpoints of a run; all ranks make one when training starts, and call it after the same steps.

    Args:
        trainer: Of the run.
        prune: Takes away what is no longer to be kept; called on the first rank when a checkpoint is whole.
    """

    def __init__(self, trainer: lightning.Trainer, prune: Callable[[int], None]) -> None:
        self.trainer, self.prune, self.run = trainer, prune, Run(trainer.default_root_dir)
        self.stage, self.planner = Stage(trainer.strategy.root_device), Planner()
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.job: Job | None = None
        self.group, self.votes = None, None
        self.vote: tuple[Any, Tensor] | None = None
        self.changing: list[str] = []
        if trainer.world_size > 1:
            self.group, self.votes = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
        if trainer.is_global_zero:
            tidy(self.run.last.parent)
        self.hooks = [o.register_step_pre_hook(lambda *_: self.stage.release()) for o in trainer.optimizers]

    def prepare(self) -> None:
        """Ask for host memory ahead, when the optimizer has its moments."""
        strategy = self.trainer.strategy
        with in_parts(strategy):
            weights = strategy.lightning_module_state_dict()
            moments = [strategy.optimizer_state(optimizer) for optimizer in self.trainer.optimizers]
        _, tensors = take_apart({WEIGHTS: weights, MOMENTS: moments})
        self.stage.prepare(self._locals(tensors)[1])

    def save(self, name: Path) -> None:
        """Begin a checkpoint of the step that was done last; of one that has begun, give it another name.

        Args:
            name: What is to lead to it: ``last.ckpt`` or ``best.ckpt`` of the run.

        Raises:
            UserError: The one before could not be written.
        """
        step, trainer = self.trainer.global_step, self.trainer
        if self.job is not None and self.job.step == step:
            if trainer.is_global_zero:
                self.job.name(name)
            return
        self.wait()  # its memory is needed
        with in_parts(trainer.strategy):
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        state, tensors = take_apart(checkpoint)
        mine, here = self._locals(tensors)
        module = trainer.lightning_module
        self.stage.copy(here, {f"{WEIGHTS}.{buffer}" for buffer, _ in module.named_buffers()})
        data = io.BytesIO()
        if trainer.is_global_zero:
            torch.save(state, data)
        self.job = Job(step, self.run.kept(step), [name])
        self.job.future = self.thread.submit(self._write, self.job, mine, data.getvalue())

    def _locals(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What this rank is to write, and its own parts of it."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        whole = {name: t.full_tensor() for name, t in tensors.items() if isinstance(t, DTensor) and _summands(t)}
        mine = {name: whole.get(name, tensors[name]) for name in owned({**tensors, **whole}, rank, ranks)}
        here = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in mine.items()}
        return {name: boxed(t) for name, t in mine.items()}, {name: tensor.detach() for name, tensor in here.items()}

    def _write(self, job: Job, tensors: dict[str, Tensor], state: bytes) -> None:
        trainer = self.trainer

        def whole() -> None:
            job.be_whole()
            self.prune(job.step)

        writer = ShardWriter(job.folder, trainer.global_rank, trainer.world_size, self.stage, state, whole)
        try:
            alone = self.group is None
            dcp.save(
                {PARTS: tensors},
                storage_writer=writer,
                planner=self.planner,
                process_group=self.group,
                no_dist=alone,
            )
        except BaseException:
            if trainer.is_global_zero:  # the others have ended as well
                shutil.rmtree(writer.temporary, ignore_errors=True)
            raise

    def poll(self) -> None:
        """Whether what is being written could be; after every step, without waiting for it.

        Raises:
            UserError: It could not; on all ranks after the same step.
        """
        if self.job is None or self.job.told:
            return
        assert self.job.future is not None
        if self.votes is None:
            ended = self.job.future.done()
        else:
            ended = False
            if self.vote is not None:
                self.vote[0].wait()
                ended = int(self.vote[1]) == self.trainer.world_size
            if not ended:
                done = torch.tensor(int(self.job.future.done()), device="cpu")
                self.vote = dist.all_reduce(done, group=self.votes, async_op=True), done
        if ended:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written, and nothing copied.

        Raises:
            UserError: What was being written could not be.
        """
        if self.vote is not None:
            self.vote[0].wait()
            self.vote = None
        if self.job is None or self.job.told:
            return
        assert self.job.future is not None
        fault = self.job.future.exception()
        self.job.told = True
        self.stage.release()
        if fault is not None:
            why = reason(fault)
            if why is None:
                raise fault
            raise UserError(unwritten(self.run.last, self.job.step, why))

    def close(self) -> None:
        """Let what has begun end, and give the memory back."""
        self.thread.shutdown()
        for hook in self.hooks:
            hook.remove()
        self.stage.close()


class Planner(DefaultSavePlanner):
    """torch's, which plans once and then only compares; what it remembers is the process's, so ours has a name."""

    made = 0

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, enable_plan_caching=True)
        Planner.made += 1
        self._cached_plans_key = f"mm1 {Planner.made}"

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """All tensors come as one value, since around each value torch spends as much as on planning it."""
        super().set_up_planner(state_dict[PARTS], storage_meta, is_coordinator)


def in_parts(strategy: Any) -> AbstractContextManager[None]:
    """Within it the strategy's states are those of this rank, and no tensor is sent or copied."""
    return strategy.in_parts() if isinstance(strategy, Sharded) else nullcontext()


def owned(tensors: Mapping[str, Tensor], rank: int, ranks: int) -> list[str]:
    """Names of the tensors of which this rank writes its part: of copies that several ranks have one writes.

    All ranks know the same names and sizes and count alike, so nothing is sent.
    """
    found = []
    load = [0] * ranks  # bytes that each would write of tensors that all have
    for number, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, DTensor):
            place = tensor.device_mesh.get_coordinate()
            copies = [axis for axis, placement in enumerate(tensor.placements) if isinstance(placement, Replicate)]
            if place is None:
                continue
            mine, among = 0, 1
            for axis in copies:
                mine, among = mine * tensor.device_mesh.size(axis) + place[axis], among * tensor.device_mesh.size(axis)
            if mine == number % among:
                found.append(name)
        else:
            least = load.index(min(load))
            load[least] += tensor.nbytes + 1
            if least == rank:
                found.append(name)
    return found


def _summands(tensor: DTensor) -> bool:
    """Whether ranks have parts of a sum that nobody has added up."""
    return any(placement.is_partial() for placement in tensor.placements)


def unwritten(path: Path, step: int, why: str) -> str:
    """The sentence about a checkpoint that cannot be written."""
    return (
        f"{path} cannot be written after step {step} ({why}); expected room and the right to write; the checkpoint "
        f"before is whole, and the same command goes on from it"
    )


def reason(fault: BaseException) -> str | None:
    """What the system says, if it is the reason of a fault on any rank."""
    faults: Iterable[BaseException] = (fault,)
    if isinstance(fault, CheckpointException):
        faults = [wrapped for wrapped, _ in fault.failures.values()]
    causes = [cause for error in faults for cause in (error, error.__context__, error.__cause__)]
    system = next((cause for cause in causes if isinstance(cause, OSError)), None)
    return None if system is None else system.strerror or str(system)
