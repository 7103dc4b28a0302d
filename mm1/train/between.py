"""What ranks that share a layer send each other, with the gradients of it; and cross-entropy over a shared vocabulary.

A tensor is *whole* on every rank, *cut* (each has its stretch of an axis), or a *sum* of which each has a term. What
becomes of a tensor settles what becomes of its gradient::

    forward                           gradient
    cut -> whole     gathered         a sum -> cut where each rank goes on with a part of a layer, else whole -> cut
    sum -> cut       scattered        cut -> whole
    whole -> cut     scattered        cut -> whole
    whole -> whole   copied           a sum -> whole
    sum -> whole     summed           whole -> whole

Megatron-LM (Shoeybi 2019, section 3); with activations between layers cut along the row (Korthikanti 2022, section 4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import linear

from mm1.model.loss import CHUNK_TOKENS

ops = torch.ops._c10d_functional  # what torch's own wrappers call, whose names have changed


class Group(NamedTuple):
    """Ranks that share a layer, as plain values, which is how a compiler knows a group."""

    name: Any  # of a type that torch has had since 2.13 alone
    ranks: int
    rank: int

    @classmethod
    def of(cls, mesh: DeviceMesh) -> Group:
        """Those of a mesh of one axis."""
        return cls(mesh.get_group().group_name, mesh.size(), mesh.get_local_rank())


def gathered(x: Tensor, dim: int, group: Group, *, terms: bool) -> Tensor:
    """Put stretches of ``dim`` together; ``terms`` says that the gradient is a sum over ranks, not whole on each."""
    return _Gathered.apply(x, dim, group, terms)


def scattered(x: Tensor, dim: int, group: Group, *, terms: bool) -> Tensor:
    """This rank's stretch of ``dim``, of the sum over ranks if ``terms``, else of what is whole on each."""
    return _Scattered.apply(x, dim, group, terms)


def copied(x: Tensor, group: Group) -> Tensor:
    """The same tensor, whose gradient is a sum over ranks."""
    return _Copied.apply(x, group)


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks, whose gradient is whole on each."""
    return _Summed.apply(x, group)


def _gather(x: Tensor, dim: int, group: Group) -> Tensor:
    found = ops.wait_tensor(ops.all_gather_into_tensor(x.contiguous(), group.ranks, group.name))
    return torch.cat(found.chunk(group.ranks), dim) if dim else found


def _sum(x: Tensor, group: Group) -> Tensor:
    return ops.wait_tensor(ops.all_reduce(x.contiguous(), "sum", group.name))


def _stretch(x: Tensor, dim: int, group: Group, terms: bool) -> Tensor:
    parts = x.chunk(group.ranks, dim)
    if not terms:
        return parts[group.rank].contiguous()
    together = torch.cat(parts) if dim else x.contiguous()
    return ops.wait_tensor(ops.reduce_scatter_tensor(together, "sum", group.ranks, group.name))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group, terms: bool) -> Tensor:
        ctx.how = dim, group, terms
        return _gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _stretch(grad, *ctx.how), None, None, None


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group, terms: bool) -> Tensor:
        ctx.how = dim, group
        return _stretch(x, dim, group, terms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(grad, *ctx.how), None, None, None


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def cross_entropy_over(hidden_MD: Tensor, head_XD: Tensor, targets_M: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """:func:`mm1.model.loss.cross_entropy_sum` where each rank has the rows ``head_XD`` of the head, in their order.

    Hidden states and targets are whole on every rank, and so are the losses.
    """
    return _CrossEntropy.apply(hidden_MD, head_XD, targets_M, group, torch.is_grad_enabled())


class _CrossEntropy(torch.autograd.Function):
    """A chunk of tokens at a time; of its logits ranks tell each other two numbers a token."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, head_XD: Tensor, targets_M: Tensor, group: Group, learning: bool
    ) -> tuple[Tensor, Tensor]:
        losses_M = torch.zeros(len(targets_M), device=hidden_MD.device)
        hidden_grad = torch.empty_like(hidden_MD) if learning else None
        head_grad = torch.zeros_like(head_XD, dtype=torch.float32) if learning else None
        for start in range(0, len(targets_M), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits_MX = linear(hidden_MD[part], head_XD).float()
            at_M1 = (targets_M[part] - group.rank * len(head_XD)).unsqueeze(1)
            here_M1 = (at_M1 >= 0) & (at_M1 < len(head_XD))
            at_M1 = at_M1.where(here_M1, 0)
            ours_M1 = logits_MX.gather(1, at_M1).where(here_M1, 0.0)
            told_RM = _gather(torch.cat([logits_MX.logsumexp(1, keepdim=True), ours_M1], 1).unsqueeze(0), 0, group)
            lse_M1 = told_RM[..., :1].logsumexp(0)
            losses_M[part] = (lse_M1 - told_RM[..., 1:].sum(0)).squeeze(1)
            if hidden_grad is None or head_grad is None:
                continue
            error_MX = logits_MX.sub_(lse_M1).exp_()  # the softmax; less one at the target it is the gradient
            error_MX.scatter_add_(1, at_M1, -here_M1.float())
            error_MX = error_MX.to(hidden_MD.dtype)
            hidden_grad[part] = error_MX @ head_XD.to(hidden_MD.dtype)
            head_grad += error_MX.T @ hidden_MD[part]
        hidden_grad = None if hidden_grad is None else _sum(hidden_grad, group)
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head_XD.dtype))
        ctx.mark_non_differentiable(losses_M)
        return losses_M.sum(), losses_M

    @staticmethod
    def backward(ctx: Any, total_grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_grad, head_grad = (None if grad is None else grad * total_grad for grad in ctx.saved_tensors)
        return hidden_grad, head_grad, None, None, None
