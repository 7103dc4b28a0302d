"""Triton kernels of :mod:`mm1.model.add_norm`: one program a row forwards, a few rows a program backwards."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528  # of the backward pass: four on each of 132 multiprocessors


@triton.jit
def _forward(x_ptr, branch_ptr, w_ptr, b_ptr, total_ptr, out_ptr, moments_ptr, eps, V: tl.constexpr, P: tl.constexpr):
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
def _backward(
    ds_ptr, dy_ptr, s_ptr, moments_ptr, w_ptr, dx_ptr, dw_ptr, db_ptr, rows, V: tl.constexpr, P: tl.constexpr
):
    """Every n-th row; its sums over rows stand in a row of their own, to be added up after."""
    program = tl.program_id(0)
    at = tl.arange(0, P)
    inside = at < V
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros((P,), tl.float32)
    db = tl.zeros((P,), tl.float32)
    for every in range(program, rows, tl.num_programs(0)):
        row = tl.cast(every, tl.int64)
        mean = tl.load(moments_ptr + 2 * row)
        rate = tl.load(moments_ptr + 2 * row + 1)
        s = tl.load(s_ptr + row * V + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * V + at, mask=inside, other=0.0).to(tl.float32)
        ds = tl.load(ds_ptr + row * V + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (s - mean) * rate, 0.0)
        dw += dy * normed
        db += dy
        g = dy * w
        dx = ds + rate * (g - tl.sum(g, 0) / V - normed * (tl.sum(g * normed, 0) / V))
        tl.store(dx_ptr + row * V + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dw_ptr + program * V + at, dw, mask=inside)
    tl.store(db_ptr + program * V + at, db, mask=inside)


def forward(
    x_RV: Tensor, branch_RV: Tensor, weight_V: Tensor, bias_V: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and normed sum in the type of ``x_RV``, and fp32[R, 2] mean and 1 / deviation."""
    rows, width = x_RV.shape
    total_RV, normed_RV = torch.empty_like(x_RV), torch.empty_like(x_RV)
    moments_R2 = x_RV.new_empty((rows, 2), dtype=torch.float32)
    if rows:
        padded = triton.next_power_of_2(width)
        _forward[(rows,)](
            x_RV, branch_RV, weight_V, bias_V, total_RV, normed_RV, moments_R2, eps, V=width, P=padded, num_warps=4
        )
    return total_RV, normed_RV, moments_R2


def backward(
    grad_total_RV: Tensor, grad_normed_RV: Tensor, total_RV: Tensor, moments_R2: Tensor, weight_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum (of either term), weight and bias."""
    rows, width = total_RV.shape
    grad_RV, programs = torch.empty_like(total_RV), max(1, min(PROGRAMS, rows))
    sums_2PV = total_RV.new_zeros((2, programs, width), dtype=torch.float32)
    if rows:
        padded = triton.next_power_of_2(width)
        _backward[(programs,)](
            grad_total_RV,
            grad_normed_RV,
            total_RV,
            moments_R2,
            weight_V,
            grad_RV,
            *sums_2PV,
            rows,
            V=width,
            P=padded,
            num_warps=8,
        )
    grad_weight_V, grad_bias_V = (sums_PV.sum(0).to(weight_V.dtype) for sums_PV in sums_2PV)
    return grad_RV, grad_weight_V, grad_bias_V
