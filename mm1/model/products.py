"""Linear layers whose weight gradient keeps all of a GPU busy.

The gradient of a weight is a product with few results and a long sum behind each. A GPU computes them in tiles, a wave
of as many as it has multiprocessors at a time, and with 1.2 waves it is idle for a third of the time. So what goes
beyond whole waves is a product of its own, which the library sums up in pieces (docs/benchmarks, ``train``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

TILE = 320 * 128  # results of the largest tile that cuBLAS takes on Hopper
LITTLE = 0.3  # of a wave: what is worth a product of its own
EVEN = 256  # where a matrix may be cut


def in_whole_waves(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; if it is a plain linear layer in bf16 on a GPU, with its weight's gradient in whole waves."""
    if type(layer) is not nn.Linear or not x.is_cuda or not torch.is_grad_enabled():
        return layer(x)
    plain = type(layer.weight) is nn.Parameter or type(layer.weight) is Tensor  # no part of one that ranks share
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if not plain or hooked or x.dtype != torch.bfloat16 or layer.weight.dtype != torch.bfloat16:
        return layer(x)
    return _Linear.apply(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    """Forwards and for the input's gradient what torch does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight_OK if wants_x else None)
        return linear(x, weight_OK, bias_O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_OK = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_MO = grad.flatten(0, -2)
        return (
            grad @ weight_OK if wants_x else None,
            weight_gradient(grad_MO, x.flatten(0, -2)) if wants_weight else None,
            grad_MO.sum(0) if wants_bias else None,
        )


@torch.library.custom_op("mm1::weight_gradient", mutates_args=())
def weight_gradient(grad_MO: Tensor, x_MK: Tensor) -> Tensor:
    """[O, K]: the sum over M of the outer products, cut along its longer side where that fills waves."""
    wide, high = x_MK.shape[1], grad_MO.shape[1]
    out_OK = x_MK.new_empty(high, wide)
    cut = whole_waves(max(wide, high), min(wide, high), _processors(x_MK.device))
    for part in (slice(0, cut), slice(cut, max(wide, high))):
        if part.start == part.stop:
            continue
        if high >= wide:
            torch.mm(grad_MO[:, part].T, x_MK, out=out_OK[part])
        else:
            torch.mm(grad_MO.T, x_MK[:, part], out=out_OK[:, part])
    return out_OK


@weight_gradient.register_fake
def _(grad_MO: Tensor, x_MK: Tensor) -> Tensor:
    return x_MK.new_empty(grad_MO.shape[1], x_MK.shape[1])


def whole_waves(longer: int, shorter: int, processors: int) -> int:
    """How far along a matrix's longer side whole waves of tiles reach; all of it where the rest is no little one."""
    waves = longer * shorter / (processors * TILE)
    if waves < 1 or waves % 1 > LITTLE:
        return longer
    cut = int(waves) * processors * TILE // shorter // EVEN * EVEN
    return cut or longer


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
