"""The fast path of a sparse layer: copy tokens into rows, run experts over rows sorted by expert, add rows up again.

On an NVIDIA GPU in bf16 three operators do it, whole for the compiler and without the host knowing how many rows an
expert got: grouped matrix products with kernels of ours around them, and on Hopper and later some of the products too.
A layer is then two products forward and four backward, and little else: the activation's gradient, its second
value for the weight's gradient and the gradient of the routing weight come out of one pass. Everything else takes
plain torch, which the tests compare with.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from mm1.model.moe.routing import Rows

if TYPE_CHECKING:
    from types import ModuleType


def fits(x: Tensor, *widths: int) -> bool:
    """Whether the fast path takes these: bf16 on a GPU that has it, rows of whole 16 bytes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and not any(width % 8 for width in widths)


def lowered(x: Tensor) -> Tensor:
    """``x`` in the type that autocast would compute in on its GPU, before it is copied k times."""
    return x.to(torch.get_autocast_dtype("cuda")) if x.is_cuda and torch.is_autocast_enabled("cuda") else x


def take_rows(x_MD: Tensor, rows: Rows) -> Tensor:
    """[M, D] -> [R, D]: the token that each row is a copy of."""
    if rows.rows_MK is not None and fits(x_MD, x_MD.shape[1]):
        return _take(x_MD, rows.tokens_R, rows.rows_MK)
    return x_MD.index_select(0, rows.tokens_R)


def add_rows(y_RD: Tensor, rows: Rows, tokens: int) -> Tensor:
    """[R, D] -> [M, D]: the sum of the rows of each token.

    Deterministic where tokens chose: each gathers its own k rows, nothing is scattered.
    """
    if rows.rows_MK is None:
        return y_RD.new_zeros(tokens, y_RD.shape[1]).index_add(0, rows.tokens_R, y_RD)
    if fits(y_RD, y_RD.shape[1]):
        return _add(y_RD, rows.tokens_R, rows.rows_MK)
    y_MKD = y_RD.index_select(0, rows.rows_MK.clamp(min=0).flatten()).unflatten(0, rows.rows_MK.shape)
    return (y_MKD * (rows.rows_MK >= 0).unsqueeze(-1)).sum(1)


def expert_rows(x_RD: Tensor, weights_R: Tensor, counts_E: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """[R, D] -> [R, D]: each row through its expert's SwiGLU, times its weight; all in bf16 but the weights."""
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    return _experts(x_RD, weights_R, ends_E, gate_up, down)[0]


def mixed_linear(x: Tensor, weight_ED: Tensor) -> Tensor:
    """``x`` in bf16 [..., D] times a matrix in fp32, in fp32 [..., E], on the matrix units.

    A number in fp32 is the sum of three in bf16, and ``x`` is one already; products of bf16 numbers are exact in fp32.
    What is left is how the units add up: a relative error of 2e-6 on an H200, where plain fp32 has 3e-7.
    """
    return _MixedLinear.apply(x.flatten(0, -2), weight_ED).unflatten(0, x.shape[:-1])


class _MixedLinear(torch.autograd.Function):
    """The three parts side by side make one product of it."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_MD, weight_ED)
        y_MP = torch.mm(x_MD, torch.cat(_parts(weight_ED)).T, out_dtype=torch.float32)
        return y_MP.unflatten(1, (3, -1)).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_ME: Tensor) -> tuple[Tensor, Tensor]:
        x_MD, weight_ED = ctx.saved_tensors
        high, middle, low = _parts(grad_ME)
        grad_PD = torch.mm(torch.cat([high, middle, low], 1).T, x_MD, out_dtype=torch.float32)
        weight_high, weight_middle, _ = _parts(weight_ED)  # what is left out is far below what bf16 can tell
        grad_x = torch.cat([high, middle, high], 1) @ torch.cat([weight_high, weight_high, weight_middle])
        return grad_x, grad_PD.unflatten(0, (3, -1)).sum(0)


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high = x.bfloat16()
    rest = x - high.float()
    middle = rest.bfloat16()
    return high, middle, (rest - middle.float()).bfloat16()


@torch.library.custom_op("mm1::take_rows", mutates_args=())
def _take(x_MD: Tensor, tokens_R: Tensor, rows_MK: Tensor) -> Tensor:
    return _triton().take_rows(x_MD.contiguous(), tokens_R)


@torch.library.custom_op("mm1::add_rows", mutates_args=())
def _add(y_RD: Tensor, tokens_R: Tensor, rows_MK: Tensor) -> Tensor:
    if not len(y_RD):
        return y_RD.new_zeros(len(rows_MK), y_RD.shape[1])  # what is at -1 is read as row 0, which is not there
    return _triton().add_rows(y_RD.contiguous(), rows_MK)


@torch.library.custom_op("mm1::experts", mutates_args=())
def _experts(x_RD: Tensor, weights_R: Tensor, ends_E: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    if not len(x_RD):  # of a rank that nobody sent any; no kernel takes a tensor of nothing
        return torch.empty_like(x_RD), x_RD.new_empty(0, gate_up.shape[1])
    ends_E = ends_E.int()  # the compiler may have widened a constant
    pre_R2F = _product(x_RD, gate_up, ends_E, turned=True)
    return _product(_triton().swiglu(pre_R2F, weights_R), down, ends_E, turned=True), pre_R2F


@torch.library.custom_op("mm1::experts_backward", mutates_args=())
def _experts_backward(
    grad_RD: Tensor, x_RD: Tensor, weights_R: Tensor, ends_E: Tensor, pre_R2F: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from mm1.model import dense_triton

    if not len(x_RD):
        nothing = torch.empty_like(x_RD), torch.empty_like(weights_R)
        return *nothing, torch.zeros_like(gate_up), torch.zeros_like(down)
    grad_RD, ends_E = grad_RD.contiguous(), ends_E.int()
    grad_hidden_RF = _product(grad_RD, down, ends_E, turned=False)
    grad_pre_R2F, grad_weights_R, hidden_RF = dense_triton.weighed_backward(grad_hidden_RF, pre_R2F, weights_R)
    del grad_hidden_RF
    grad_down = grouped_mm(grad_RD.t(), hidden_RF, offs=ends_E)
    del hidden_RF
    grad_gate_up = grouped_mm(grad_pre_R2F.t(), x_RD, offs=ends_E)
    return _product(grad_pre_R2F, gate_up, ends_E, turned=False), grad_weights_R, grad_gate_up, grad_down


def _product(a_RK: Tensor, b: Tensor, ends_E: Tensor, turned: bool) -> Tensor:
    kernels = _triton()
    if _has_tensor_copies(a_RK.device) and len(b) <= kernels.MOST_EXPERTS:
        return kernels.grouped_mm(a_RK, b, ends_E, turned)
    return grouped_mm(a_RK, b.transpose(-2, -1) if turned else b, offs=ends_E)


@cache
def _has_tensor_copies(device: torch.device) -> bool:
    """Whether the chip copies tiles by itself (Hopper and later), which our product relies on."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def _triton() -> ModuleType:
    from mm1.model.moe import triton_kernels  # a GPU's torch brings Triton along, a CPU's does not

    return triton_kernels


@_take.register_fake
def _(x_MD: Tensor, tokens_R: Tensor, rows_MK: Tensor) -> Tensor:
    return x_MD.new_empty(len(tokens_R), x_MD.shape[1])


@_add.register_fake
def _(y_RD: Tensor, tokens_R: Tensor, rows_MK: Tensor) -> Tensor:
    return y_RD.new_empty(len(rows_MK), y_RD.shape[1])


@_experts.register_fake
def _(x_RD: Tensor, weights_R: Tensor, ends_E: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return x_RD.new_empty(x_RD.shape), x_RD.new_empty(len(x_RD), gate_up.shape[1])


@_experts_backward.register_fake
def _(
    grad_RD: Tensor, x_RD: Tensor, weights_R: Tensor, ends_E: Tensor, pre_R2F: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x_RD.new_empty(x_RD.shape),
        weights_R.new_empty(weights_R.shape),
        gate_up.new_empty(gate_up.shape),
        down.new_empty(down.shape),
    )


def _keep_places(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _keep_rows(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _back_from_rows(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
    return _add(grad_RD, *ctx.saved_tensors), None, None


def _back_to_rows(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
    return _take(grad_MD, *ctx.saved_tensors), None, None


def _back_through_experts(ctx: Any, grad_RD: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
    x_RD, weights_R, ends_E, gate_up, down, pre_R2F = ctx.saved_tensors
    found = _experts_backward(grad_RD, x_RD, weights_R, ends_E, pre_R2F, gate_up, down)
    grad_x_RD, grad_weights_R, grad_gate_up, grad_down = found
    return grad_x_RD, grad_weights_R, None, grad_gate_up, grad_down


_take.register_autograd(_back_from_rows, setup_context=_keep_places)
_add.register_autograd(_back_to_rows, setup_context=_keep_places)
_experts.register_autograd(_back_through_experts, setup_context=_keep_rows)
