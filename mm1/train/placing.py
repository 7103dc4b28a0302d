"""Which part of a tensor a rank has, with nothing sent: to keep it, to load it, and to say so to a sharded checkpoint.

A matrix that holds gate and up halves (:mod:`mm1.model.ffn`) is cut so that a rank has matching rows of both::

    rows of 2 halves   g0 g1 g2 g3 u0 u1 u2 u3        rank 0 of 2   g0 g1 u0 u1        rank 1   g2 g3 u2 u3

torch has a placement for that, made for FSDP2 over tensor parallelism; what knows rectangles alone, as
``torch.distributed.checkpoint`` does, is told of two (:func:`boxed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper
from torch.distributed.tensor.placement_types import Placement, Replicate, _StridedShard

HALVES = _StridedShard(0, split_factor=2)


def in_halves(tensor: Tensor) -> bool:
    """Whether ranks have matching rows of its halves; the axis of :mod:`mm1.train.cut` is a mesh's last."""
    return isinstance(tensor, DTensor) and tensor.placements[-1] == HALVES


def part(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """This rank's part of a tensor that all ranks have.

    Axes of a mesh cut from the last to the first: FSDP2 cuts what other axes have left.
    """
    here = whole
    for axis in reversed(range(mesh.ndim)):
        placement = placements[axis]
        if isinstance(placement, Replicate):
            continue
        halves = here.chunk(2) if placement == HALVES and axis == mesh.ndim - 1 else [here]
        dim = placement.dim  # type: ignore[attr-defined]
        cut = [_share(half, dim, mesh.size(axis), mesh.get_local_rank(axis)) for half in halves]
        here = torch.cat(cut) if len(cut) > 1 else cut[0]
    return DTensor.from_local(
        here.contiguous(), mesh, placements, run_check=False, shape=whole.shape, stride=_strides(whole.shape)
    )


def _share(tensor: Tensor, dim: int, ranks: int, rank: int) -> Tensor:
    """As FSDP2 has it: the first ranks have the largest parts, the last ones perhaps nothing."""
    each = -(-tensor.shape[dim] // ranks)
    start = min(rank * each, tensor.shape[dim])
    return tensor.narrow(dim, start, min(each, tensor.shape[dim] - start))


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return (*accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1),)[::-1]


def boxed(tensor: Tensor) -> Tensor:
    """The same tensor for ``torch.distributed.checkpoint``, sharing memory: a part in halves as the boxes that it is.

    Everything else is returned as it is. Without this, a checkpoint would be written as if both halves stood together.
    """
    if not in_halves(tensor):
        return tensor
    assert isinstance(tensor, DTensor)
    mesh, here, axis = tensor.device_mesh, tensor.to_local().detach(), tensor.device_mesh.ndim - 1
    rows, columns, half = len(here) // 2, here.shape[1], tensor.shape[0] // 2
    left = 0
    for other in range(axis):  # FSDP2 has cut columns (:mod:`mm1.train.parallel`)
        if not isinstance(tensor.placements[other], Replicate):
            left = mesh.get_local_rank(other) * columns
    top = mesh.get_local_rank(axis) * rows
    wrapped = LocalShardsWrapper(list(here.chunk(2)), [(top, left), (half + top, left)])
    return DTensor(wrapped, tensor._spec, requires_grad=False)
