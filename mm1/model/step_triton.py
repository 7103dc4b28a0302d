"""Triton kernels for the attention of one new position: what a slot has filled is read once, and nothing else.

A row's keys are cut into parts of fixed length, which programs read side by side (Flash-Decoding, Dao et al. 2023); a
second kernel puts the parts together. Where parts begin depends on nothing but the position, so that neither other rows
nor the room behind a row change a bit of what comes out.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, BLOCKS = 64, 4  # positions read at once, and how often by one program
PART = BLOCK * BLOCKS


@triton.jit
def _read(
    q_ptr, k_ptr, v_ptr, last_ptr, acc_ptr, sums_ptr, scale, window, share, parts,
    q_slot, q_head, k_slot, k_group, k_place, v_slot, v_group, v_place,
    K: tl.constexpr, P: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One part of one slot for the heads that share a key: sum, largest score and weight of what is seen there."""
    slot, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    last = tl.load(last_ptr + slot).to(tl.int32)
    first = part * BLOCK * BLOCKS
    if (first <= last) & (first + BLOCK * BLOCKS > last - window + 1):
        at = tl.arange(0, P)
        head = tl.arange(0, H)
        whole = (head < share)[:, None] & (at < K)[None, :]
        q_places = q_ptr + slot * q_slot + (group * share + head)[:, None] * q_head + at[None, :]
        q = tl.load(q_places, mask=whole, other=0.0)
        most = tl.full((H,), -1e30, tl.float32)
        total = tl.zeros((H,), tl.float32)
        acc = tl.zeros((H, P), tl.float32)
        for block in range(0, BLOCKS):
            place = first + block * BLOCK + tl.arange(0, BLOCK)
            seen = (place <= last) & (last - place < window)
            here = seen[:, None] & (at < K)[None, :]
            k = tl.load(
                k_ptr + slot * k_slot + group * k_group + place[:, None] * k_place + at[None, :], mask=here, other=0.0
            )
            v = tl.load(
                v_ptr + slot * v_slot + group * v_group + place[:, None] * v_place + at[None, :], mask=here, other=0.0
            )
            if H == 1:
                scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[None, :]
            else:
                scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            scores = tl.where(seen[None, :], scores * scale, -1e30)
            above = tl.maximum(most, tl.max(scores, 1))
            weights = tl.where(seen[None, :], tl.exp(scores - above[:, None]), 0.0)
            shrink = tl.exp(most - above)
            if H == 1:
                acc = acc * shrink[:, None] + tl.sum(tl.trans(weights) * v.to(tl.float32), 0)[None, :]
            else:
                acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            total = total * shrink + tl.sum(weights, 1)
            most = above
        row = (slot * tl.num_programs(1) * share + group * share + head) * parts + part
        tl.store(acc_ptr + row[:, None] * K + at[None, :], acc, mask=whole)
        tl.store(sums_ptr + 2 * row, most, mask=head < share)
        tl.store(sums_ptr + 2 * row + 1, total, mask=head < share)


@triton.jit
def _together(
    acc_ptr,
    sums_ptr,
    last_ptr,
    out_ptr,
    window,
    parts,
    K: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PART: tl.constexpr,
):
    """The parts of one head of one slot, weighed by their largest scores."""
    slot = tl.program_id(0).to(tl.int64)
    row = slot * tl.num_programs(1) + tl.program_id(1)
    last = tl.load(last_ptr + slot).to(tl.int32)
    part, at = tl.arange(0, N), tl.arange(0, P)
    read = (part < parts) & (part * PART <= last) & ((part + 1) * PART > last - window + 1)
    most = tl.load(sums_ptr + 2 * (row * parts + part), mask=read, other=-1e30)
    total = tl.load(sums_ptr + 2 * (row * parts + part) + 1, mask=read, other=0.0)
    weight = tl.where(read, tl.exp(most - tl.max(most, 0)), 0.0)
    whole = read[:, None] & (at < K)[None, :]
    acc = tl.load(acc_ptr + (row * parts + part)[:, None] * K + at[None, :], mask=whole, other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out_ptr + row * K + at, out.to(out_ptr.dtype.element_ty), mask=at < K)


def attend_slots(q_SHK: Tensor, k_SGTK: Tensor, v_SGTK: Tensor, last_S: Tensor, window: int) -> Tensor:
    """[S, H, K]: each slot's new position over what it has filled, positions ``last_S - window + 1`` to ``last_S``."""
    (slots, heads, width), (groups, places) = q_SHK.shape, k_SGTK.shape[1:3]
    share, parts, padded = heads // groups, triton.cdiv(places, PART), max(16, triton.next_power_of_2(width))
    acc = q_SHK.new_empty((slots, heads, parts, width), dtype=torch.float32)
    sums = q_SHK.new_empty((slots, heads, parts, 2), dtype=torch.float32)
    out_SHK = q_SHK.new_empty(q_SHK.shape)
    _read[(slots, groups, parts)](
        q_SHK, k_SGTK, v_SGTK, last_S, acc, sums, width**-0.5, window, share, parts,
        *q_SHK.stride()[:2], *k_SGTK.stride()[:3], *v_SGTK.stride()[:3],
        K=width, P=padded, H=1 if share == 1 else max(16, triton.next_power_of_2(share)), BLOCK=BLOCK, BLOCKS=BLOCKS,
    )  # fmt: skip
    _together[(slots, heads)](
        acc, sums, last_S, out_SHK, window, parts, K=width, P=padded, N=triton.next_power_of_2(parts), PART=PART
    )
    return out_SHK
