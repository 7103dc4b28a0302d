"""The dense feed-forward layer: SwiGLU (Shazeer 2020).

Gate and up projection are one matrix: the input is read once, and an expert of :mod:`mm1.model.moe.experts` is this
very layer stacked, so that a dense layer becomes an expert, or an imported one either, by copying.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mm1.model.products import in_whole_waves


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of a tensor that holds both halves [..., 2F] -> [..., F]."""
    if gate_up.is_cuda and gate_up.requires_grad:
        return _Gated.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


class _Gated(torch.autograd.Function):
    """Its two gradients from one pass over memory: a compiler, which writes them side by side, takes two."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _gated_backward(grad, *ctx.saved_tensors)


@torch.library.custom_op("mm1::gated_backward", mutates_args=())
def _gated_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    from mm1.model import dense_triton  # a GPU's torch brings Triton along, a CPU's does not

    flat = grad.flatten(0, -2).contiguous(), gate_up.flatten(0, -2).contiguous()
    return dense_triton.gated_backward(*flat).view(gate_up.shape)


@_gated_backward.register_fake
def _(grad: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases.

    Args:
        width: Decoder width D.
        ffn_width: Inner width F.
    """

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Each position for itself."""
        return in_whole_waves(self.down, gated(in_whole_waves(self.gate_up, x_BTD)))
