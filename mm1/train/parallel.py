"""A model spread over ranks: experts by expert, layers of the decoder by columns, and all of it by FSDP2.

GShard; Megatron-LM (:mod:`mm1.train.cut`); Rajbhandari et al., ZeRO. The ranks are seen as three grids::

    decoder             replicate x shard x tensor      cut over tensor, then over shard; copied over replicate
    encoder, connector  replicate x each                cut over all ranks of a copy
    experts             replicate x rest x experts      whole ones on each rank of experts, cut inside over rest

Ranks that differ in tensor alone read the same rows, all others rows of their own. Gradients are *summed* over ranks
and never divided, since an expert's gradient is a sum over the ranks that sent it rows before any reduction; so the
loss has to be the rank's share of the global mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from mm1.errors import UserError, at_least
from mm1.model.moe.dispatch import Dispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Router, Topology
from mm1.train.between import Group
from mm1.train.cut import cut, deal_pictures, score, whole_mixtures
from mm1.train.exchange import Exchange, Overlapped, local
from mm1.train.placing import in_halves, part
from mm1.train.shadow import Costs
from mm1.train.shadowed import Shadowed

if TYPE_CHECKING:  # the benchmark of layers has no encoders installed
    from mm1.model.mm1 import MM1

ARGS = "trainer.strategy.init_args"
Way = Literal["plain", "overlapped", "shadowed"]
REPLICATE, SHARD, TENSOR, EACH, REST, EXPERTS = "replicate", "shard", "tensor", "each", "rest", "experts"


@dataclass(frozen=True)
class Meshes:
    """The ranks as the decoder sees them, as towers do, and as experts do: FSDP2 takes a mesh a unit."""

    dense: DeviceMesh
    towers: DeviceMesh
    sparse: DeviceMesh

    @property
    def tensor(self) -> int:
        """Ranks that share a layer and read the same rows."""
        return self.dense[TENSOR].size()


def meshes(
    device: str, ranks: int, *, replicate: int = 1, shard: int | None = None, experts: int = 1, tensor: int = 1
) -> Meshes:
    """All grids of all ranks; neighbours share a layer, for these have most to tell each other.

    Args:
        device: Kind of device.
        ranks: All of them.
        replicate: Copies of everything.
        shard: Ranks that read rows of their own and share one copy; all that is left, if not given.
        experts: How many ranks of a copy share the experts of a layer.
        tensor: How many ranks share each layer of the decoder.

    Raises:
        UserError: The sizes do not fit the ranks there are.
    """
    at_least(1, {f"{ARGS}.replicate": replicate, f"{ARGS}.experts": experts, f"{ARGS}.tensor": tensor})
    shard = ranks // (replicate * tensor) if shard is None else shard
    if replicate * shard * tensor != ranks:
        times = f" times tensor={tensor}" if tensor > 1 else ""
        raise UserError(
            f"{ranks} ranks are not replicate={replicate} times shard={shard}{times}; expected them to be ({ARGS})"
        )
    each = shard * tensor
    if each % experts:
        raise UserError(
            f"experts={experts} among {each} ranks that share a copy of the model; expected a number that divides "
            f"them ({ARGS}.experts)"
        )

    def grid(**axes: int) -> DeviceMesh:
        return init_device_mesh(device, (*axes.values(),), mesh_dim_names=(*axes,))

    return Meshes(
        grid(replicate=replicate, shard=shard, tensor=tensor),
        grid(replicate=replicate, each=each),
        grid(replicate=replicate, rest=each // experts, experts=experts),
    )


def shard(model: MM1, on: Meshes, way: Way = "plain", low: torch.dtype | None = None) -> None:
    """Spread a model in place, once, empty (on the meta device) or filled alike on all ranks.

    Args:
        model: The model.
        on: The ranks.
        way: How rows meet their experts (:class:`mm1.train.strategy.Sharded`).
        low: The type that weights are gathered and multiplied in, if not their own; gradients are added up in fp32, and
            routers stay as they are.

    Raises:
        UserError: Sizes that an axis does not divide, or shadows of experts that are cut.
    """
    if isinstance(model, FSDPModule):
        return
    decoder, towers = model.decoder, _data(on.towers, EACH)
    apart = _spread_experts(model, on, way, low)
    whole = on.tensor == 1
    if not whole:
        group = Group.of(on.dense[TENSOR])
        cut(decoder, on.dense[TENSOR])
        model.score = score(group)
        deal_pictures(model.vision, model.connector, group)
    for unit in (*model.vision.blocks, model.vision, model.connector):
        _fully_shard(unit, towers, low)
    _spread_routers(decoder, towers, low, on.tensor)
    if not whole:  # ranks compute mixtures alike, so that the sum is as many times too large
        for mixture in whole_mixtures(decoder):
            _fully_shard(mixture, towers, low, on.tensor, ignored_params=apart)
    for unit in (*decoder.layers, model):
        _fully_shard(unit, _data(on.dense, SHARD), low, ignored_params=apart)
    _place_on_loading(model)
    if on.sparse[EXPERTS].size() > 1:
        _gather_ahead([model.connector, *decoder.layers], model)
    model.in_step = True


def spread(
    model: nn.Module, units: Iterable[nn.Module], on: Meshes, way: Way = "plain", low: torch.dtype | None = None
) -> None:
    """Spread a model of any kind over all axes but ``tensor``.

    Args:
        model: What holds layers with experts, among others.
        units: What is gathered and forgotten as one, inner ones first and ``model`` itself last.
        on: The ranks.
        way: As in :func:`shard`.
        low: Likewise.
    """
    apart = _spread_experts(model, on, way, low)
    _spread_routers(model, _data(on.towers, EACH), low, 1)
    for unit in units:
        _fully_shard(unit, _data(on.dense, SHARD), low, ignored_params=apart)
    _place_on_loading(model)


def _spread_routers(model: nn.Module, mesh: DeviceMesh, low: torch.dtype | None, times: int) -> None:
    """Keep the weights of routers from ``low``: theirs is where half precision hurts first."""
    for router in model.modules():
        if low is not None and isinstance(router, Router) and any(True for _ in router.parameters()):
            _fully_shard(router, mesh, None, times)


def _spread_experts(model: nn.Module, on: Meshes, way: Way, low: torch.dtype | None) -> set[nn.Parameter]:
    """Give each rank its part of the experts of every layer; the parameters that nothing else may cut further."""
    mesh, apart = on.sparse, set[nn.Parameter]()
    shared = mesh[EXPERTS].size() > 1
    if not shared and on.tensor == 1:
        return apart
    for layer in (module for module in model.modules() if isinstance(module, MoE)):
        if shared:
            _part(layer.experts, mesh)
            layer.dispatch = _dispatch(layer.experts, mesh, way)
            if isinstance(layer.router, Topology):
                layer.router.home = mesh[EXPERTS].get_local_rank() * layer.router.nodes // mesh[EXPERTS].size()
        if mesh[REST].size() > 1 or mesh[REPLICATE].size() > 1 or low is not None:
            placement = Shard(1) if shared else Shard(0)
            cut_by: dict[str, Any] = {
                "shard_placement_fn": lambda _, at=placement: at,
                "reshard_after_forward": mesh[REST].size() > 1,
            }
            _fully_shard(layer.experts, _data(mesh, REST), low, **cut_by)
        else:
            apart |= {*layer.experts.parameters()}
        if shared:
            _read_locally(layer.experts)
    return apart


def _gather_ahead(units: Sequence[nn.Module], root: nn.Module) -> None:
    """Say what is gathered while a unit runs.

    FSDP2 finds it out from the order in which the host comes by, and there it waits in every layer for the sizes of an
    exchange, with nothing on the way meanwhile.
    """

    def parts(unit: nn.Module) -> list[FSDPModule]:
        return [module for module in unit.modules() if isinstance(module, FSDPModule)]

    for before, after in pairwise(units):
        for unit, others in ((before, parts(after)), (after, parts(before))):
            assert isinstance(unit, FSDPModule)
            if unit is before:
                unit.set_modules_to_forward_prefetch(others)
            else:
                unit.set_modules_to_backward_prefetch(others)
    assert isinstance(root, FSDPModule)
    root.set_modules_to_backward_prefetch(parts(units[-1]))


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
        kept = part(weight.detach(), mesh[EXPERTS], [Shard(0)])
        setattr(experts, name, nn.Parameter(kept, requires_grad=weight.requires_grad))


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


def _fully_shard(unit: nn.Module, mesh: DeviceMesh, low: torch.dtype | None, times: int = 1, **options: Any) -> None:
    """Make a unit of FSDP2; ``times`` is how often its gradient is among those that are summed."""
    # tables and the residual stream come in as they are: autocast lowers what is multiplied
    policy = MixedPrecisionPolicy(low, None if low is None else torch.float32, cast_forward_inputs=False)
    columns = {"shard_placement_fn": partial(_columns, ranks=mesh.size(mesh.ndim - 1))}
    sharded = fully_shard(unit, mesh=mesh, mp_policy=policy, **columns | options)
    sharded.set_gradient_divide_factor(float(times))
    sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def _columns(parameter: nn.Parameter, ranks: int) -> Shard | None:
    """What ranks of the axis tensor have in halves is cut across, for stretches of these rows would be of one half."""
    if not in_halves(parameter):
        return None
    if parameter.shape[1] % ranks:
        raise UserError(
            f"model.decoder.init_args.width is {parameter.shape[1]}, to be cut by {ranks} ranks; expected a multiple "
            f"({ARGS}.shard, beside tensor)"
        )
    return Shard(1)


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, placed as ``like`` is; nothing is sent."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    return part(whole, like.device_mesh, like.placements)


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
    """Whether backward passes add up gradients over ranks; of a window of micro-batches only the last has to.

    Experts that a rank has to itself are gathered from nobody, only cast, so they stay cast until then.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)
            if isinstance(module, Experts):
                alone = all(not _over(p, REST) for p in module.parameters())
                module.set_reshard_after_backward(now or not alone, recurse=False)


def _over(parameter: Tensor, axis: str) -> bool:
    """Whether an axis of more than one rank has part in a parameter."""
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    return axis in names and parameter.device_mesh.size(names.index(axis)) > 1


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, norm: Tensor | None = None) -> Tensor:
    """Scale gradients to a norm of at most ``limit``, whatever meshes they are on; the norm before."""
    having = [parameter for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(having) if norm is None else norm
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in map(_gradient, having):
        by_type.setdefault(gradient.dtype, []).append(local(gradient))
    for alike in by_type.values():
        torch._foreach_mul_(alike, scale)
    return norm


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients, fp32[]; no host waits for it.

    Each rank adds up the squares that it has, divided by how many have the same, and one number goes around; torch's
    own function takes tensors of one mesh alone.
    """
    found = [_gradient(parameter) for parameter in parameters if parameter.grad is not None]
    alike: dict[tuple[float, torch.dtype], list[Tensor]] = {}
    for gradient in found:
        alike.setdefault((_copies(gradient), gradient.dtype), []).append(local(gradient))
    squares = [
        torch.stack(torch._foreach_norm(group, dtype=torch.float32)).square().sum() / copies
        for (copies, _), group in alike.items()
    ]
    norm = torch.stack(squares).sum() if squares else torch.zeros(())
    if dist.is_initialized() and any(isinstance(gradient, DTensor) for gradient in found):
        dist.all_reduce(norm)
    return norm.sqrt()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _copies(gradient: Tensor) -> float:
    """Ranks that have the same part of a gradient as this one; its mesh may be one of several that are alike."""
    if not isinstance(gradient, DTensor):
        return 1.0
    mesh, same = gradient.device_mesh, [isinstance(p, Replicate) for p in gradient.placements]
    alike = dist.get_world_size() / mesh.size()
    for axis, replicated in enumerate(same):
        alike *= mesh.size(axis) if replicated else 1
    return alike
