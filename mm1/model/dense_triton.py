"""Triton kernels of what stands between a dense layer's products: each tensor is read once and written once."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# rows at once, warps and programs of the norm's backward pass: fastest of 45 on an H200, two programs a multiprocessor
ROWS, WARPS, PROGRAMS = 2, 8, 264


@triton.jit
def _add_norm(x_ptr, branch_ptr, w_ptr, b_ptr, total_ptr, out_ptr, moments_ptr, eps, V: tl.constexpr, P: tl.constexpr):
    """One row: the sum, its norm, mean and 1 / deviation."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, P)
    inside = at < V
    x = tl.load(x_ptr + row * V + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch_ptr + row * V + at, mask=inside, other=0.0).to(tl.float32)
    total = x.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * V + at, total, mask=inside)
    x = total.to(tl.float32)  # what a backward pass will see
    mean = tl.sum(x, 0) / V
    apart = tl.where(inside, x - mean, 0.0)
    rate = 1 / tl.sqrt(tl.sum(apart * apart, 0) / V + eps)
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * V + at, (apart * rate * w + b).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(moments_ptr + 2 * row, mean)
    tl.store(moments_ptr + 2 * row + 1, rate)


@triton.jit
def _add_norm_backward(
    ds_ptr, dy_ptr, s_ptr, moments_ptr, w_ptr, dx_ptr, sums_ptr, rows, V: tl.constexpr, P: tl.constexpr, R: tl.constexpr
):
    """R rows at a time, every n-th lot of them; sums over rows stand in a row of their own, to be added up after."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    at = tl.arange(0, P)
    inside = at < V
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros((R, P), tl.float32)
    db = tl.zeros((R, P), tl.float32)
    for first in range(program * R, rows, programs * R):
        row = (first + tl.arange(0, R)[:, None]).to(tl.int64)
        here = (row < rows) & inside[None, :]
        mean = tl.load(moments_ptr + 2 * row, mask=row < rows, other=0.0)
        rate = tl.load(moments_ptr + 2 * row + 1, mask=row < rows, other=0.0)
        place = row * V + at[None, :]
        s = tl.load(s_ptr + place, mask=here, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=here, other=0.0).to(tl.float32)
        ds = tl.load(ds_ptr + place, mask=here, other=0.0).to(tl.float32)
        normed = tl.where(here, (s - mean) * rate, 0.0)
        dw += dy * normed
        db += dy
        g = dy * w
        across = tl.sum(g, 1, keep_dims=True) + normed * tl.sum(g * normed, 1, keep_dims=True)
        tl.store(dx_ptr + place, (ds + rate * (g - across / V)).to(dx_ptr.dtype.element_ty), mask=here)
    tl.store(sums_ptr + program * V + at, tl.sum(dw, 0), mask=inside)
    tl.store(sums_ptr + (programs + program) * V + at, tl.sum(db, 0), mask=inside)


@triton.jit
def _add_up(sums_ptr, dw_ptr, db_ptr, programs, width, C: tl.constexpr, R: tl.constexpr):
    """C columns of what the programs above left behind: the first half of its rows, and the second."""
    at = tl.program_id(0) * C + tl.arange(0, C)
    dw = tl.zeros((R, C), tl.float32)
    db = tl.zeros((R, C), tl.float32)
    for first in range(0, programs, R):
        row = first + tl.arange(0, R)[:, None]
        here = (row < programs) & (at < width)[None, :]
        dw += tl.load(sums_ptr + row * width + at[None, :], mask=here, other=0.0)
        db += tl.load(sums_ptr + (programs + row) * width + at[None, :], mask=here, other=0.0)
    tl.store(dw_ptr + at, tl.sum(dw, 0).to(dw_ptr.dtype.element_ty), mask=at < width)
    tl.store(db_ptr + at, tl.sum(db, 0).to(db_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _gated_backward(
    grad_ptr, pre_ptr, out_ptr, weights_ptr, grad_weights_ptr, hidden_ptr, width, WEIGHED: tl.constexpr, C: tl.constexpr
):
    """One row: gradients of gate and up; of a weighed one those of the weight as well, and its values once more."""
    row = tl.program_id(0).to(tl.int64)
    kind = out_ptr.dtype.element_ty
    if WEIGHED:
        weight = tl.load(weights_ptr + row).to(tl.float32)
        grad_weight = tl.zeros((C,), tl.float32)
    for start in range(0, width, C):
        at = start + tl.arange(0, C)
        grad = tl.load(grad_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
        gate = tl.load(pre_ptr + row * 2 * width + at, mask=at < width, other=0.0).to(tl.float32)
        up = tl.load(pre_ptr + row * 2 * width + width + at, mask=at < width, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        silu = gate * share
        if WEIGHED:
            grad_weight += grad * silu * up
            grad *= weight
            tl.store(hidden_ptr + row * width + at, (silu * up * weight).to(kind), mask=at < width)
        grad_gate = grad * up * (share + silu * (1 - share))
        tl.store(out_ptr + row * 2 * width + at, grad_gate.to(kind), mask=at < width)
        tl.store(out_ptr + row * 2 * width + width + at, (grad * silu).to(kind), mask=at < width)
    if WEIGHED:
        tl.store(grad_weights_ptr + row, tl.sum(grad_weight, 0))


@triton.jit
def _cross_entropy(logits_ptr, targets_ptr, losses_ptr, vocabulary, LEARN: tl.constexpr, C: tl.constexpr):
    """One row: its loss, and in place of its logits their gradient."""
    row = tl.program_id(0).to(tl.int64)
    base_ptr = logits_ptr + row * vocabulary
    most = tl.full((C,), -1e30, tl.float32)
    total = tl.zeros((C,), tl.float32)
    for start in range(0, vocabulary, C):
        at = start + tl.arange(0, C)
        x = tl.load(base_ptr + at, mask=at < vocabulary, other=-1e30).to(tl.float32)
        above = tl.maximum(most, x)
        total = total * tl.exp(most - above) + tl.exp(x - above)
        most = above
    top = tl.max(most, 0)
    lse = top + tl.log(tl.sum(total * tl.exp(most - top), 0))
    target = tl.load(targets_ptr + row)
    known = (target >= 0) & (target < vocabulary)  # else no number comes out, which whoever judges steps sees
    tl.store(losses_ptr + row, lse - tl.load(base_ptr + target, mask=known, other=float("nan")).to(tl.float32))
    if LEARN:
        tl.debug_barrier()  # the target's logit has been read by all
        for start in range(0, vocabulary, C):
            at = start + tl.arange(0, C)
            x = tl.load(base_ptr + at, mask=at < vocabulary, other=0.0).to(tl.float32)
            error = tl.exp(x - lse) - tl.where(at == target, 1.0, 0.0)
            tl.store(base_ptr + at, error.to(logits_ptr.dtype.element_ty), mask=at < vocabulary)


def add_norm(
    x_RV: Tensor, branch_RV: Tensor, weight_V: Tensor, bias_V: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and normed sum in the type of ``x_RV``, and fp32[R, 2] mean and 1 / deviation."""
    rows, width = x_RV.shape
    total_RV, normed_RV = torch.empty_like(x_RV), torch.empty_like(x_RV)
    moments_R2 = x_RV.new_empty((rows, 2), dtype=torch.float32)
    if rows:
        padded = triton.next_power_of_2(width)
        _add_norm[(rows,)](
            x_RV, branch_RV, weight_V, bias_V, total_RV, normed_RV, moments_R2, eps, V=width, P=padded, num_warps=4
        )
    return total_RV, normed_RV, moments_R2


def add_norm_backward(
    grad_total_RV: Tensor, grad_normed_RV: Tensor, total_RV: Tensor, moments_R2: Tensor, weight_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum (of either term), weight and bias."""
    rows, width = total_RV.shape
    grad_RV, grad_weight_V, grad_bias_V = (torch.empty_like(t) for t in (total_RV, weight_V, weight_V))
    programs = max(1, min(PROGRAMS, triton.cdiv(rows, ROWS)))
    sums_SV = total_RV.new_empty((2 * programs, width), dtype=torch.float32)
    _add_norm_backward[(programs,)](
        grad_total_RV, grad_normed_RV, total_RV, moments_R2, weight_V, grad_RV, sums_SV, rows,
        V=width, P=triton.next_power_of_2(width), R=ROWS, num_warps=WARPS,
    )  # fmt: skip
    _add_up[(triton.cdiv(width, 32),)](sums_SV, grad_weight_V, grad_bias_V, programs, width, C=32, R=64)
    return grad_RV, grad_weight_V, grad_bias_V


def gated_backward(grad_RF: Tensor, pre_R2F: Tensor) -> Tensor:
    """Gradient of ``pre_R2F``, gates beside ups, of :func:`mm1.model.ffn.gated`."""
    out_R2F, (rows, width) = torch.empty_like(pre_R2F), grad_RF.shape
    if rows:
        _gated_backward[(rows,)](grad_RF, pre_R2F, out_R2F, None, None, None, width, WEIGHED=False, C=block(width))
    return out_R2F


def weighed_backward(grad_RF: Tensor, pre_R2F: Tensor, weights_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``pre_R2F`` and ``weights_R`` of the same times a weight for each row, and its values once more."""
    out_R2F, hidden_RF, (rows, width) = torch.empty_like(pre_R2F), torch.empty_like(grad_RF), grad_RF.shape
    grad_weights_R = torch.empty(rows, device=grad_RF.device)
    if rows:
        _gated_backward[(rows,)](
            grad_RF, pre_R2F, out_R2F, weights_R, grad_weights_R, hidden_RF, width, WEIGHED=True, C=block(width)
        )
    return out_R2F, grad_weights_R.to(weights_R.dtype), hidden_RF


def block(width: int) -> int:
    """How many numbers of a row are worked on at once."""
    return min(1024, triton.next_power_of_2(width))


def cross_entropy_(logits_MV: Tensor, targets_M: Tensor, learning: bool) -> Tensor:
    """fp32[M], the loss of each row; with ``learning`` its gradient takes the place of ``logits_MV``."""
    rows, vocabulary = logits_MV.shape
    losses_M = torch.empty(rows, dtype=torch.float32, device=logits_MV.device)
    if rows:
        columns = min(4096, triton.next_power_of_2(vocabulary))
        _cross_entropy[(rows,)](logits_MV, targets_M, losses_M, vocabulary, LEARN=learning, C=columns, num_warps=8)
    return losses_M
