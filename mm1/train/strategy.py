"""Training over ranks that share the model, set in the YAML: what Lightning's strategy for FSDP2 lacks for us.

``trainer.strategy: {class_path: mm1.train.strategy.Sharded, init_args: {experts: 2}}``. Lightning 2.6 knows two axes
and no experts, adds up gradients after every micro-batch, and writes folders that nothing else reads; here checkpoints
are those of docs/house.md, a file with whole tensors or a folder with every rank's part of them, and load on any number
of ranks, spread in any way.

With ``trainer.precision: bf16-mixed`` FSDP2 gathers in bf16, half as many bytes, and adds up gradients in fp32; weights
at rest and the optimizer's states stay fp32, and routers are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.tensor import DTensor

from mm1.errors import at_least
from mm1.model.mm1 import MM1
from mm1.model.pieces import AtRest, InPieces, Pieces, fill, is_sharded
from mm1.train.parallel import ARGS, Way, meshes, placed, shard, sum_gradients
from mm1.train.placing import boxed

# of whole tensors from ranks that have a part of a part, one message after the other; there is no other way
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def reader(strategy: Any) -> tuple[int, int]:
    """Which rows are read here: this rank's number among the ranks with rows of their own, and how many there are.

    Args:
        strategy: Any of Lightning's.
    """
    shared = strategy.sizes["tensor"] if isinstance(strategy, Sharded) else 1
    return strategy.global_rank // shared, strategy.world_size // shared


class Sharded(ModelParallelStrategy):
    """Ranks share parameters, gradients and optimizer states (FSDP2), and the experts of a layer among them.

    Every rank reads rows of its own, and gradients are sums over ranks (:mod:`mm1.train.parallel`).

    Args:
        experts: Ranks that share the experts of a layer; tokens travel between them. Best within a machine, and as few
            as memory allows.
        shard: Ranks with rows of their own that share one copy of the model; all that ``replicate`` and ``tensor``
            leave, if not given. With ``tensor`` times as many, a multiple of ``experts``.
        replicate: Copies of the model; more than one where machines are many and the network between them is slow.
        tensor: Ranks that share every layer of the decoder and read the same rows, neighbours in one machine. For
            layers that do not fit: each then waits for what ranks tell each other.
        exchange: Tokens travel all at once (``plain``), in two parts of which one is computed meanwhile
            (``overlapped``), or stay where a hot expert comes to them (``shadowed``, with ``experts`` = ``shard``).
    """

    def __init__(
        self,
        experts: int = 1,
        shard: int | None = None,
        replicate: int = 1,
        tensor: int = 1,
        exchange: Way = "plain",
    ) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)
        sizes = {"experts": experts, "replicate": replicate, "tensor": tensor} | (
            {} if shard is None else {"shard": shard}
        )
        at_least(1, {f"{ARGS}.{name}": size for name, size in sizes.items()})
        self.sizes, self.exchange = sizes, exchange
        self.parts = False

    def setup_environment(self) -> None:
        """Join the other ranks and agree on the meshes.

        Raises:
            UserError: Sizes that do not fit the number of ranks.
        """
        self._setup_distributed()
        self.meshes = meshes(self.root_device.type, self.world_size, **self.sizes)

    def spread(self, model: MM1) -> None:
        """Keep this rank's part of a model that is empty, or filled alike on all ranks."""
        lowered = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
        low = torch.bfloat16 if lowered or self.precision_plugin.precision == "bf16-mixed" else None
        shard(model, self.meshes, self.exchange, low)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Ranks that share layers read the same rows, all others their own."""
        rank, ranks = reader(self)
        return {"num_replicas": ranks, "rank": rank}

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Over ranks with rows of their own; what those that share layers have is alike, or a word of any of them."""
        found = super().reduce(tensor, group, reduce_op)
        shared = self.sizes["tensor"]
        if shared == 1 or not isinstance(found, Tensor) or reduce_op not in ("sum", ReduceOp.SUM):
            return found
        # all ranks take part, so that all come to the same bits; a word of one of them must not round to none
        return found / shared if found.is_floating_point() else -(-found // shared)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep the gradients of a micro-batch here; those of the last one bring them along."""
        assert self.model is not None
        sum_gradients(self.model, False)
        try:
            yield
        finally:
            sum_gradients(self.model, True)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are read before the optimizer is made, as everywhere else."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """With :meth:`load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the first rank, nothing on the others; all ranks call this (but see :meth:`in_parts`)."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Likewise."""
        return self._whole(
            (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()
        )

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        """Within it states are those of this rank, tensors sharded as they are."""
        self.parts = True
        try:
            yield
        finally:
            self.parts = False

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        if self.parts:
            return state

        def gathered(part: DTensor) -> Tensor:
            tensor = part.full_tensor()  # one at a time; the others forget it at once
            return tensor.cpu() if self.is_global_zero else torch.empty(0)

        state = apply_to_collection(state, DTensor, gathered)
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map the file, so that a rank reads of it what it keeps; of a folder only what is no tensor."""
        if is_sharded(Path(checkpoint_path)):
            return Pieces(checkpoint_path).checkpoint(read=False)
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its part (:func:`mm1.train.parallel.shard` sees to that)."""
        assert self.lightning_module is not None
        found = checkpoint["state_dict"]
        if any(isinstance(tensor, AtRest) for tensor in found.values()):  # and fits
            fill([(found[name], boxed(tensor)) for name, tensor in self.lightning_module.state_dict().items()])
        else:
            self.lightning_module.load_state_dict(found, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its part of the moments, which are as large as their parameters."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ids = [index for group in saved["param_groups"] for index in group["params"]]
            ours = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            pairs: list[tuple[AtRest, Tensor]] = []
            state = {
                index: {name: _part(value, parameter, pairs) for name, value in saved["state"].get(index, {}).items()}
                for index, parameter in zip(ids, ours, strict=True)
            }
            fill(pairs)
            optimizer.load_state_dict({**saved, "state": state})


def _part(value: Any, parameter: Tensor, pairs: list[tuple[AtRest, Tensor]]) -> Any:
    """This rank's part of what an optimizer keeps of a parameter; what is yet to be read into it is noted down."""
    like = isinstance(value, Tensor | AtRest) and value.shape == parameter.shape
    if isinstance(value, AtRest) and like:
        empty = torch.empty_like(parameter.detach(), dtype=value.dtype)
        pairs.append((value, boxed(empty)))
        return empty
    if isinstance(value, AtRest):
        return value.read().clone()
    return placed(value, parameter) if like else value


def take_over(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model, shared by ranks or not; all of them fit."""
    if isinstance(weights, InPieces):
        fill([(weights.at_rest[name], boxed(tensor)) for name, tensor in model.state_dict().items()])
    else:
        model.load_state_dict(weights)


@torch.no_grad()
def average(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Average gradients over all ranks in the type that they are in; one that a rank lacks is zero there."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    on_the_way = [torch.distributed.all_reduce(grad, async_op=True) for grad in grads]
    for work in on_the_way:
        work.wait()
    torch._foreach_div_(grads, float(torch.distributed.get_world_size()))


class BothLayouts(TorchCheckpointIO):
    """How the other strategies read a checkpoint: a file as ever, or a folder, put together."""

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """All of it, on the CPU."""
        if is_sharded(Path(path)):
            return Pieces(path).checkpoint(read=True)
        return super().load_checkpoint(path, map_location, weights_only)
