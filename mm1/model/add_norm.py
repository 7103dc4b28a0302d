"""A branch added to the residual and the sum normed, in one pass over memory: what an encoder does between products.

A compiler makes two passes of it each way. On a GPU it is one kernel each way (:mod:`mm1.model.dense_triton`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDEST = 8192  # what one program norms


def add_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """``x + branch`` and its layer norm, both in the type of ``x``, [..., V].

    Args:
        x: The residual.
        branch: What is added to it; nothing if None.
        norm: Weight, bias and epsilon.
    """
    if branch is None:
        return x, norm(x)
    if not x.is_cuda or norm.weight is None or norm.bias is None or x.shape[-1] > WIDEST:
        total = x + branch
        return total, norm(total)
    shape = x.shape
    x_RV, branch_RV = x.flatten(0, -2), branch.flatten(0, -2)
    total_RV, normed_RV, _ = _forward(x_RV, branch_RV, norm.weight, norm.bias, norm.eps)
    return total_RV.view(shape), normed_RV.view(shape)


@torch.library.custom_op("mm1::add_layer_norm", mutates_args=())
def _forward(
    x_RV: Tensor, branch_RV: Tensor, weight_V: Tensor, bias_V: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from mm1.model import dense_triton

    return dense_triton.add_norm(x_RV.contiguous(), branch_RV.contiguous(), weight_V, bias_V, eps)


@torch.library.custom_op("mm1::add_layer_norm_backward", mutates_args=())
def _backward(
    grad_total_RV: Tensor, grad_normed_RV: Tensor, total_RV: Tensor, moments_R2: Tensor, weight_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from mm1.model import dense_triton

    grads = grad_total_RV.contiguous(), grad_normed_RV.contiguous()
    return dense_triton.add_norm_backward(*grads, total_RV, moments_R2, weight_V)


@_forward.register_fake
def _(x_RV: Tensor, branch_RV: Tensor, weight_V: Tensor, bias_V: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = x_RV.shape
    return x_RV.new_empty(shape), x_RV.new_empty(shape), x_RV.new_empty((shape[0], 2), dtype=torch.float32)


@_backward.register_fake
def _(
    grad_total_RV: Tensor, grad_normed_RV: Tensor, total_RV: Tensor, moments_R2: Tensor, weight_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return total_RV.new_empty(total_RV.shape), torch.empty_like(weight_V), torch.empty_like(weight_V)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, branch_RV, weight_V, _, _ = inputs
    total_RV, _, moments_R2 = output
    ctx.save_for_backward(total_RV, moments_R2, weight_V)
    ctx.branch_dtype = branch_RV.dtype
    ctx.set_materialize_grads(True)


def _back(ctx: Any, grad_total_RV: Tensor, grad_normed_RV: Tensor, _: Tensor) -> tuple[Any, ...]:
    grad_RV, grad_weight_V, grad_bias_V = _backward(grad_total_RV, grad_normed_RV, *ctx.saved_tensors)
    return grad_RV, grad_RV.to(ctx.branch_dtype), grad_weight_V, grad_bias_V, None


_forward.register_autograd(_back, setup_context=_keep)
