"""Triton kernels of the expert layer, where they beat torch's operators on Hopper (docs/benchmarks).

Everything static: the host never learns how many rows an expert got. Loaded on a GPU alone;
:mod:`mm1.model.moe.kernels` chooses, and has the same in torch for everything else.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mm1.model.dense_triton import block

MOST_EXPERTS = 1024  # whose ends one program reads at once


@triton.jit
def _add_rows(y_ptr, rows_ptr, out_ptr, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """One token: the sum of its K rows in fp32; rows at -1 were dropped."""
    token = tl.program_id(0).to(tl.int64)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(K):
            row = tl.load(rows_ptr + token * K + k)
            y = tl.load(y_ptr + tl.maximum(row, 0) * width + at, mask=at < width, other=0.0)
            total += tl.where(row >= 0, y.to(tl.float32), 0.0)
        tl.store(out_ptr + token * width + at, total.to(out_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _take_rows(x_ptr, tokens_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens_ptr + row)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + row * width + at, tl.load(x_ptr + token * width + at, mask=at < width), mask=at < width)


@triton.jit
def _swiglu(pre_ptr, weights_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """One row: silu(gate) * up * weight."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_ptr + row).to(tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        gate = tl.load(pre_ptr + row * 2 * width + at, mask=at < width, other=0.0).to(tl.float32)
        up = tl.load(pre_ptr + row * 2 * width + width + at, mask=at < width, other=0.0).to(tl.float32)
        hidden = gate * tl.sigmoid(gate) * up * weight
        tl.store(out_ptr + row * width + at, hidden.to(out_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _grouped_mm(
    a_desc, b_desc, out_ptr, ends_ptr, N, K, E,
    EXPERTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TURNED: tl.constexpr, SMS: tl.constexpr,
):  # fmt: skip
    """Rows of each expert times its matrix; persistent, one program a multiprocessor.

    A tile's expert is found among the ends of all experts, which every program keeps in registers. Tiles that share a
    piece of an expert's matrix follow each other, so that it is read from memory once.
    """
    expert_E = tl.arange(0, EXPERTS)
    ends_E = tl.load(ends_ptr + expert_E, mask=expert_E < E, other=0)
    starts_E = tl.load(ends_ptr + expert_E - 1, mask=(expert_E > 0) & (expert_E < E), other=0)
    columns = tl.cdiv(N, BN)
    high_E = tl.where(expert_E < E, tl.cdiv(ends_E - starts_E, BM), 0)  # tiles of an expert, one above the other
    last_E = tl.cumsum(high_E, 0) * columns
    for tile in tl.range(tl.program_id(0), tl.sum(high_E, 0) * columns, SMS, flatten=True):
        expert = tl.sum((last_E <= tile).to(tl.int32), 0)
        mine_E = expert_E == expert
        high = tl.sum(tl.where(mine_E, high_E, 0), 0)
        local = tile - tl.sum(tl.where(mine_E, last_E, 0), 0) + high * columns
        row = tl.sum(tl.where(mine_E, starts_E, 0), 0) + (local % high) * BM
        end = tl.sum(tl.where(mine_E, ends_E, 0), 0)
        column = (local // high) * BN
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            a = a_desc.load([row, k])
            if TURNED:
                b = b_desc.load([expert * N + column, k]).T
            else:
                b = b_desc.load([expert * K + k, column])
            total = tl.dot(a, b, total)
        rows, cols = row + tl.arange(0, BM), column + tl.arange(0, BN)
        inside = (rows < end)[:, None] & (cols < N)[None, :]  # rows behind the end are another expert's
        tl.store(out_ptr + rows[:, None].to(tl.int64) * N + cols[None, :], total.to(out_ptr.dtype.element_ty), inside)


def add_rows(y_RD: Tensor, rows_MK: Tensor) -> Tensor:
    """[R, D] -> [M, D]: the sum of the rows of each token, in fp32."""
    tokens, top_k = rows_MK.shape
    width = y_RD.shape[1]
    out_MD = y_RD.new_empty(tokens, width)
    _add_rows[(tokens,)](y_RD, rows_MK, out_MD, width, top_k, block(width))
    return out_MD


def take_rows(x_MD: Tensor, tokens_R: Tensor) -> Tensor:
    """[M, D] -> [R, D]."""
    width = x_MD.shape[1]
    out_RD = x_MD.new_empty(len(tokens_R), width)
    _take_rows[(len(tokens_R),)](x_MD, tokens_R, out_RD, width, block(width))
    return out_RD


def swiglu(pre_R2F: Tensor, weights_R: Tensor) -> Tensor:
    """[R, 2F] -> [R, F]: silu(gate) * up * weight."""
    rows, width = len(pre_R2F), pre_R2F.shape[1] // 2
    out_RF = pre_R2F.new_empty(rows, width)
    _swiglu[(rows,)](pre_R2F, weights_R, out_RF, width, block(width))
    return out_RF


def grouped_mm(a_RK: Tensor, b: Tensor, ends_E: Tensor, turned: bool) -> Tensor:
    """[R, K] times [E, K, N], or times [E, N, K] ``turned``; rows sorted by expert, ``ends_E`` int32."""
    experts, columns = len(b), b.shape[1] if turned else b.shape[2]
    rows, inner = a_RK.shape
    out_RN = a_RK.new_empty(rows, columns)
    # few rows an expert: lower tiles waste less of the last one; chosen on an H200, see docs/benchmarks
    tile: dict[str, Any] = {"BM": 64, "num_warps": 4, "num_stages": 4}
    if rows > 512 * experts:
        tile = {"BM": 128, "num_warps": 8, "num_stages": 3}
    BM, BN, BK = tile["BM"], 256, 64
    flat_b = b.view(-1, b.shape[2])
    processors = torch.cuda.get_device_properties(a_RK.device).multi_processor_count if a_RK.is_cuda else 2
    _grouped_mm[(processors,)](
        TensorDescriptor.from_tensor(a_RK, [BM, BK]),
        TensorDescriptor.from_tensor(flat_b, [BN, BK] if turned else [BK, BN]),
        out_RN, ends_E, columns, inner, experts,
        EXPERTS=max(16, triton.next_power_of_2(experts)), BN=BN, BK=BK, TURNED=turned, SMS=processors, **tile,
    )  # fmt: skip
    return out_RN
