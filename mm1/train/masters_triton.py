"""One kernel for the AdamW step of all tensors: each number is read and written once (:mod:`mm1.train.masters`)."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, PART, WARPS = 16384, 2048, 8  # numbers a program updates, all in all and at once; fast on an H200
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _adamw(
    table_ptr,
    blocks_ptr,
    rates_ptr,
    corrections_ptr,
    scale_ptr,
    skip_ptr,
    tensors,
    beta1,
    beta2,
    eps,
    P: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    MASTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """A block of one tensor, part by part; row r of the table: addresses of parameters, gradients, moments, masters."""
    if tl.load(skip_ptr) == 0:
        block = tl.program_id(0)
        which = tl.load(blocks_ptr + 2 * block)
        start = tl.multiple_of(tl.load(blocks_ptr + 2 * block + 1), PART)
        numbers = tl.load(table_ptr + 5 * tensors + which)
        p_ptr = tl.multiple_of(tl.load(table_ptr + which).to(tl.pointer_type(P)), 16)
        g_ptr = tl.multiple_of(tl.load(table_ptr + tensors + which).to(tl.pointer_type(G)), 16)
        m_ptr = tl.multiple_of(tl.load(table_ptr + 2 * tensors + which).to(tl.pointer_type(S)), 16)
        v_ptr = tl.multiple_of(tl.load(table_ptr + 3 * tensors + which).to(tl.pointer_type(S)), 16)
        w_ptr = tl.multiple_of(tl.load(table_ptr + 4 * tensors + which).to(tl.pointer_type(tl.float32)), 16)
        rate = tl.load(rates_ptr + 2 * which)
        decay = rate * tl.load(rates_ptr + 2 * which + 1)
        size = rate / tl.load(corrections_ptr)
        below = 1 / tl.sqrt(tl.load(corrections_ptr + 1))
        scale = tl.load(scale_ptr)
        end = tl.minimum(numbers, start + BLOCK)
        whole = (end - start) // PART
        for part in range(0, whole):  # without a mask, so that 16 bytes are read at once
            _part(
                p_ptr, g_ptr, m_ptr, v_ptr, w_ptr, start + part * PART, end, scale, decay, size, below, beta1, beta2,
                eps, P, G, S, MASTERS, PART, False,
            )  # fmt: skip
        if start + whole * PART < end:
            _part(
                p_ptr, g_ptr, m_ptr, v_ptr, w_ptr, start + whole * PART, end, scale, decay, size, below, beta1, beta2,
                eps, P, G, S, MASTERS, PART, True,
            )  # fmt: skip


@triton.jit
def _part(
    p_ptr, g_ptr, m_ptr, v_ptr, w_ptr, start, end, scale, decay, size, below, beta1, beta2, eps,
    P: tl.constexpr, G: tl.constexpr, S: tl.constexpr, MASTERS: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    at = start + tl.arange(0, PART)
    inside = at < end if MASKED else None
    g = tl.load(g_ptr + at, mask=inside).to(tl.float32) * scale
    m = tl.load(m_ptr + at, mask=inside).to(tl.float32)
    v = tl.load(v_ptr + at, mask=inside).to(tl.float32)
    w = tl.load(w_ptr + at, mask=inside) if MASTERS else tl.load(p_ptr + at, mask=inside).to(tl.float32)
    m += (g - m) * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    w = w * (1 - decay) - size * m / (tl.sqrt(v) * below + eps)
    tl.store(m_ptr + at, m.to(S), mask=inside)
    tl.store(v_ptr + at, v.to(S), mask=inside)
    tl.store(p_ptr + at, w.to(P), mask=inside)
    if MASTERS:
        tl.store(w_ptr + at, w, mask=inside)


def update(
    parameters: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    masters: list[Tensor] | None,
    *,
    rates: list[tuple[float, float]],
    step: Tensor,
    betas: tuple[float, float],
    eps: float,
    scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    """Take a step with all tensors, which are alike in type; nothing waits for the GPU.

    Args:
        parameters: Updated in place; contiguous, as everything else.
        grads: Their gradients.
        means: First moments.
        squares: Second moments, of the same type.
        masters: What parameters are the roundings of; None if they are themselves what is updated.
        rates: Learning rate and decay of each.
        step: fp32[], which step this is, counted from 1.
        betas: As for AdamW.
        eps: Likewise.
        scale: What gradients are multiplied by, fp32[].
        skip: Whether nothing is to happen, bool[].
    """
    device, count = parameters[0].device, len(parameters)
    addresses = [[t.data_ptr() for t in tensors] for tensors in (parameters, grads, means, squares)]
    addresses.append([t.data_ptr() for t in masters] if masters else [0] * count)
    sizes = [t.numel() for t in parameters]
    table = _there(torch.tensor([*addresses, sizes], dtype=torch.int64), device)
    blocks = _blocks(tuple(sizes), device)
    one, none = torch.ones((), device=device), torch.zeros((), dtype=torch.int8, device=device)
    _adamw[(len(blocks),)](
        table,
        blocks,
        _there(torch.tensor(rates, dtype=torch.float32), device),
        torch.stack([1 - torch.pow(beta, step.double()) for beta in betas]).float(),
        one if scale is None else scale.float(),
        none if skip is None else skip.to(torch.int8),
        count,
        *betas,
        eps,
        P=TYPES[parameters[0].dtype],
        G=TYPES[grads[0].dtype],
        S=TYPES[means[0].dtype],
        MASTERS=masters is not None,
        BLOCK=BLOCK,
        PART=PART,
        num_warps=WARPS,
    )


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


_kept: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
KEPT = 16  # lists of tensors of which the blocks are kept


def _blocks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """int64[blocks, 2], tensor and first number of each; the same in every step."""
    if (sizes, device) not in _kept:
        found = [(which, start) for which, size in enumerate(sizes) for start in range(0, size, BLOCK)]
        if len(_kept) == KEPT:
            _kept.clear()
        _kept[sizes, device] = _there(torch.tensor(found, dtype=torch.int64), device)
    return _kept[sizes, device]
