"""Sharded checkpoints, written while training goes on, every rank its own part (torch.distributed.checkpoint).

A step pays for a copy to host memory (:mod:`mm1.train.stage`), a thread writes from there. The folder is written under
a temporary name and renamed when all ranks have brought theirs to the disk; ``last.ckpt`` and ``best.ckpt`` are
links, which are moved after that. So a kill at any moment leaves a whole checkpoint, and what it tore off never has
the name of one. What goes wrong on any rank is known to all at the same step.
"""

from __future__ import annotations

import io
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.tensor import DTensor, Replicate

from mm1.errors import UserError
from mm1.model.pieces import WEIGHTS, take_apart
from mm1.runs import Run
from mm1.train.placing import boxed
from mm1.train.shard_writer import ShardWriter, link, tidy
from mm1.train.stage import Stage

log = logging.getLogger(__name__)

PARTS = "parts"
NOTED_S = 2.0  # of waiting
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
        run: Whose they are.
        device: Where this rank's tensors are.
        prune: Takes away what is no longer to be kept; called on the first rank when a checkpoint is whole.
        rank: This one.
        ranks: All of them.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device,
        prune: Callable[[int], None],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.run, self.prune, self.rank, self.ranks = run, prune, rank, ranks
        self.stage, self.planner = Stage(device), Planner()
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.job: Job | None = None
        self.group, self.votes = None, None
        self.vote: tuple[Any, Tensor] | None = None
        if ranks > 1:
            self.group, self.votes = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
        if rank == 0:
            tidy(self.run.last.parent)

    def prepare(self, checkpoint: dict[str, Any]) -> None:
        """Ask for host memory ahead, when the optimizer has its moments.

        Args:
            checkpoint: At least ``state_dict`` and ``optimizer_states`` as they are on this rank.
        """
        self.stage.prepare(self._locals(take_apart(checkpoint)[1])[1])

    def save(self, step: int, name: Path, make: Callable[[], dict[str, Any]], changing: Iterable[str] = ()) -> None:
        """Begin a checkpoint; of one that has begun, give it another name.

        Args:
            step: The step that was done last.
            name: What is to lead to it: ``last.ckpt`` or ``best.ckpt`` of the run.
            make: Gives Lightning's checkpoint, tensors as they are on this rank.
            changing: Names of weights that change before the optimizer's step, as buffers do.

        Raises:
            UserError: The one before could not be written.
        """
        if self.job is not None and self.job.step == step:
            if self.rank == 0:
                self.job.name(name)
            return
        waited_s = time.monotonic()
        self.wait()  # its memory is needed
        waited_s = time.monotonic() - waited_s
        if waited_s > NOTED_S and self.rank == 0:
            log.warning(
                "step %d waited %.1f s for the checkpoint before to be written; raise save_every_n_steps",
                step,
                waited_s,
            )
        state, tensors = take_apart(make())
        mine, here = self._locals(tensors)
        self.stage.copy(here, {f"{WEIGHTS}.{buffer}" for buffer in changing})
        data = io.BytesIO()
        if self.rank == 0:
            torch.save(state, data)
        self.job = Job(step, self.run.kept(step), [name])
        self.job.future = self.thread.submit(self._write, self.job, mine, data.getvalue())

    def _locals(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What this rank is to write, and its own parts of it."""
        whole = {name: t.full_tensor() for name, t in tensors.items() if isinstance(t, DTensor) and _summands(t)}
        mine = {name: whole.get(name, tensors[name]) for name in owned({**tensors, **whole}, self.rank, self.ranks)}
        here = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in mine.items()}
        return {name: boxed(t) for name, t in mine.items()}, {name: tensor.detach() for name, tensor in here.items()}

    def _write(self, job: Job, tensors: dict[str, Tensor], state: bytes) -> None:
        def whole() -> None:
            job.be_whole()
            self.prune(job.step)

        writer = ShardWriter(job.folder, self.rank, self.ranks, self.stage, state, whole)
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
            if self.rank == 0:  # the others have ended as well
                shutil.rmtree(writer.temporary, ignore_errors=True)
            raise

    def before_change(self) -> None:
        """To be called before the optimizer changes weights: the device waits for the copy then, the host does not.

        No hook of the optimizer's step can do it: Lightning puts forward and backward pass into that step, which then
        would wait for the copy from its beginning.
        """
        self.stage.release()

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
                ended = int(self.vote[1]) == self.ranks
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
