"""A model spread over ranks: experts by expert, everything else by FSDP2 (GShard; Rajbhandari et al., ZeRO).

The ranks are seen as two grids::

    all but experts     replicate x shard               cut over shard, copied over replicate
    experts             replicate x rest x experts      whole ones on each rank of experts, cut inside over rest

Every rank reads its own rows. Gradients are *summed* over ranks and never divided, since an expert's gradient is a sum
over the ranks that sent it rows before any reduction; so the loss has to be the rank's share of the global mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mm1.errors import UserError, at_least
from mm1.model.moe.dispatch import Dispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Topology
from mm1.train.exchange import Exchange, Overlapped, local
from mm1.train.shadow import Costs
from mm1.train.shadowed import Shadowed

if TYPE_CHECKING:  # the benchmark of layers has no encoders installed
    from mm1.model.mm1 import MM1

ARGS = "trainer.strategy.init_args"
Way = Literal["plain", "overlapped", "shadowed"]
REPLICATE, SHARD, REST, EXPERTS = "replicate", "shard", "rest", "experts"


@dataclass(frozen=True)
class Meshes:
    """The ranks as all but experts sees them, and as experts do; they are on two because FSDP2 takes a mesh a unit."""

    dense: DeviceMesh
    sparse: DeviceMesh


def meshes(device: str, ranks: int, *, replicate: int = 1, shard: int | None = None, experts: int = 1) -> Meshes:
    """Both grids of all ranks.

    Args:
        device: Kind of device.
        ranks: All of them.
        replicate: Copies of everything.
        shard: Ranks that share one copy; all that ``replicate`` leaves, if not given.
        experts: How many of those share the experts of a layer.

    Raises:
        UserError: The sizes do not fit the ranks there are.
    """
    at_least(1, {f"{ARGS}.replicate": replicate, f"{ARGS}.experts": experts})
    shard = ranks // replicate if shard is None else shard
    if replicate * shard != ranks:
        raise UserError(
            f"{ranks} ranks are not replicate={replicate} times shard={shard}; expected them to be ({ARGS})"
        )
    if shard % experts:
        raise UserError(
            f"experts={experts} among {shard} ranks that share a copy of the model; expected a number that divides "
            f"them ({ARGS}.experts)"
        )
    names, sizes = (REPLICATE, REST, EXPERTS), (replicate, shard // experts, experts)
    return Meshes(
        init_device_mesh(device, (replicate, shard), mesh_dim_names=(REPLICATE, SHARD)),
        init_device_mesh(device, sizes, mesh_dim_names=names),
    )


def shard(model: MM1, on: Meshes, way: Way = "plain") -> None:
    """Spread a model in place, once, empty (on the meta device) or filled alike on all ranks.

    Raises:
        UserError: Experts that the axis does not divide, or shadows of experts that are cut.
    """
    if isinstance(model, FSDPModule):
        return
    spread(model, [*model.vision.blocks, model.vision, model.connector, *model.decoder.layers, model], on, way)
    model.in_step = True


def spread(model: nn.Module, units: Iterable[nn.Module], on: Meshes, way: Way = "plain") -> None:
    """Spread a model of any kind.

    Args:
        model: What holds layers with experts, among others.
        units: What is gathered and forgotten as one, inner ones first and ``model`` itself last.
        on: The ranks.
        way: How rows meet their experts (:class:`mm1.train.strategy.Sharded`).
    """
    apart = _spread_experts(model, on.sparse, way)
    for unit in units:
        _fully_shard(unit, _data(on.dense, SHARD), ignored_params=apart)
    _place_on_loading(model)


def _spread_experts(model: nn.Module, mesh: DeviceMesh, way: Way) -> set[nn.Parameter]:
    """Give each rank its part of the experts of every layer; the parameters that nothing else may cut further."""
    layers = [layer for layer in model.modules() if isinstance(layer, MoE)]
    if mesh[EXPERTS].size() == 1:
        return set()
    apart: set[nn.Parameter] = set()
    for layer in layers:
        _part(layer.experts, mesh)
        layer.dispatch = _dispatch(layer.experts, mesh, way)
        if isinstance(layer.router, Topology):
            layer.router.home = mesh[EXPERTS].get_local_rank() * layer.router.nodes // mesh[EXPERTS].size()
        if mesh.size() > mesh[EXPERTS].size():
            _fully_shard(layer.experts, _data(mesh, REST), shard_placement_fn=lambda _: Shard(1))
        else:
            apart |= {*layer.experts.parameters()}
        _read_locally(layer.experts)
    return apart


def _dispatch(experts: Experts, mesh: DeviceMesh, way: Way) -> Dispatch:
    group = mesh[EXPERTS].get_group()
    if way == "plain":
        return Exchange(group)
    if way == "overlapped":
        return Overlapped(group)
    if mesh[REST].size() > 1:
        raise UserError(
            f"shadowed experts are cut by {mesh[REST].size()} ranks each; expected as many experts as ranks of shard "
            f"({ARGS}.exchange)"
        )
    return Shadowed(group, Costs.of(*experts.down.shape[1:]))


def _part(experts: Experts, mesh: DeviceMesh) -> None:
    """Cut stacked experts along the first axis; what is left of an inner axis must be cut evenly later."""
    ranks, rest = mesh[EXPERTS].size(), mesh[REST].size()
    if experts.count % ranks:
        raise UserError(
            f"{experts.count} experts on {ranks} ranks; expected a number of ranks that divides them ({ARGS}.experts)"
        )
    for name, weight in [*experts.named_parameters(recurse=False)]:
        if weight.shape[1] % rest:
            raise UserError(
                f"experts.{name} is {weight.shape[1]} wide, to be cut by {rest} ranks; expected a width that they "
                f"divide, or more of {ARGS}.experts or {ARGS}.replicate"
            )
        part = distribute_tensor(weight.detach(), mesh[EXPERTS], [Shard(0)], src_data_rank=None)
        setattr(experts, name, nn.Parameter(part, requires_grad=weight.requires_grad))


def _read_locally(experts: Experts) -> None:
    """Let the experts' forward see plain tensors, this rank's part: how many rows they multiply differs by rank."""

    def enter(module: nn.Module, _: Any) -> None:
        # an attribute of the instance hides the parameter of that name; FSDP has put its gathered one there by now
        vars(module).update({name: local(weight) for name, weight in module.named_parameters(recurse=False)})

    def leave(module: nn.Module, *_: Any) -> None:
        for name, _weight in module.named_parameters(recurse=False):
            vars(module).pop(name, None)

    experts.register_forward_pre_hook(enter)
    experts.register_forward_hook(leave, always_call=True)


def _data(mesh: DeviceMesh, axis: str) -> DeviceMesh:
    return mesh[axis] if mesh[REPLICATE].size() == 1 else mesh[REPLICATE, axis]


def _fully_shard(unit: nn.Module, mesh: DeviceMesh, **options: Any) -> None:
    sharded = fully_shard(unit, mesh=mesh, **options)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, placed as ``like`` is; nothing is sent."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def whole(parameter: Tensor) -> Iterator[Tensor]:
    """A tensor to fill in place of a sharded one, of which this rank's part is kept; one whole tensor at a time."""
    if not isinstance(parameter, DTensor):
        yield parameter
        return
    full = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    yield full
    parameter.to_local().copy_(local(placed(full, parameter)))


def _place_on_loading(model: nn.Module) -> None:
    """Let ``load_state_dict`` take whole tensors, wherever it is called."""

    def place(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if prefix + name in state:
                state[prefix + name] = placed(state[prefix + name], parameter)

    for module in model.modules():
        module.register_load_state_dict_pre_hook(place)


def sum_gradients(model: nn.Module, now: bool) -> None:
    """Whether backward passes add up gradients over ranks; of a window of micro-batches only the last has to."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients to a norm of at most ``limit``, whatever meshes they are on; the norm before, over all of them.

    torch's own function stacks the norms of all tensors, which works on one mesh alone.
    """
    by_mesh: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            where = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
            by_mesh.setdefault(where, []).append(parameter)
    norms = [_norm(group) for group in by_mesh.values()]
    norm = torch.stack(norms).norm() if norms else torch.zeros(())
    for group in by_mesh.values():
        torch.nn.utils.clip_grads_with_norm_(group, limit, norm)
    return norm


def _norm(group: list[nn.Parameter]) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
