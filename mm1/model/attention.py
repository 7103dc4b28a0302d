"""Causal self-attention that stays inside a document: rotary positions, grouped key-value heads, cached keys.

Three ways compute the same thing, and :func:`attend` picks. A CPU has no backward for flex_attention, so it takes
scaled-dot-product attention with a boolean mask; a GPU takes flex_attention with a block mask, because a dense mask
would leave the fast kernels; decoding takes the boolean mask over the cache anywhere.
Rotary embedding: Su et al. 2021, in the half-split layout of Llama; grouped heads: Ainslie et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

Mask: TypeAlias = "Tensor | BlockMask"


def document_mask(segments_BT: Tensor) -> Mask:
    """Who may look at whom in packed rows, built once per batch and shared by all layers.

    The row of :mod:`mm1.batch`, ``x`` = may look; padding looks at padding, so that no row of the mask is empty::

        segments  1 1 1 1 2 0
              1   x
              1   x x
              1   x x x
              1   x x x x
              2           x
              0             x
    """
    if not segments_BT.is_cuda:
        return causal_mask(segments_BT, segments_BT, 0)

    def same_document(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segments_BT[row, query] == segments_BT[row, key])

    rows, tokens = segments_BT.shape
    return _compiled(create_block_mask)(same_document, rows, None, tokens, tokens, device=segments_BT.device)


def causal_mask(queries_BT: Tensor, keys_BT: Tensor, first: int) -> Tensor:
    """bool[B, 1, queries, keys] from the segments of both; query 0 stands at position ``first`` of the keys."""
    queries, keys = queries_BT.shape[1], keys_BT.shape[1]
    earlier = torch.ones(queries, keys, dtype=torch.bool, device=keys_BT.device).tril(first)
    return (earlier & (queries_BT[:, :, None] == keys_BT[:, None, :])).unsqueeze(1)


def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask) -> Tensor:
    """Softmax attention under ``mask``; each of the G key-value heads serves H / G query heads."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    if isinstance(mask, Tensor):
        return scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, enable_gqa=grouped)
    return _compiled(flex_attention)(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=grouped)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first use: without it flex_attention holds all scores, and on a CPU it is never needed."""
    return torch.compile(function)


def rotary(positions_BT: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, K / 2] of the rotation at each position, in fp32; once per batch for all layers."""
    exponents = torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32) / head_width
    angles = positions_BT[:, None, :, None].float() * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (k, k + K / 2) of every head by their angles."""
    cos, sin = cos.to(x_BHTK.dtype), sin.to(x_BHTK.dtype)
    left, right = x_BHTK.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


@dataclass
class KVCache:
    """Keys and values of what was read so far, room for ``tokens`` positions reserved.

    Rows may be padded on the left: a position of segment 0 is seen by nobody, and positions are the caller's.

    Args:
        keys_LBGTK: Rotated keys of every layer.
        values_LBGTK: Values of every layer.
        segments_BT: Segment of every position filled so far.
        length: Positions filled.
    """

    keys_LBGTK: Tensor
    values_LBGTK: Tensor
    segments_BT: Tensor
    length: int = 0

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return all of them."""
        end = self.length + k_BGTK.shape[2]
        self.keys_LBGTK[layer, :, :, self.length : end] = k_BGTK
        self.values_LBGTK[layer, :, :, self.length : end] = v_BGTK
        return self.keys_LBGTK[layer, :, :, :end], self.values_LBGTK[layer, :, :, :end]

    def mask(self, segments_BT: Tensor) -> Tensor:
        """Note the segments of new positions and return who of them may look at what is stored."""
        end = self.length + segments_BT.shape[1]
        self.segments_BT[:, self.length : end] = segments_BT
        return causal_mask(segments_BT, self.segments_BT[:, :end], self.length)


class Attention(nn.Module):
    """Self-attention of one layer.

    Args:
        width: Decoder width D.
        heads: Query heads H; D / H is the head width.
        kv_heads: Key-value heads G, a divisor of H.
    """

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o = nn.Linear(heads * self.head_width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Mix positions; with a ``cache``, ``x_BTD`` is only the new ones and ``layer`` says whose keys are meant."""
        q_BHTK, k_BGTK, v_BGTK = (
            project(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        q_BHTK, k_BGTK = rotate(q_BHTK, *rotation), rotate(k_BGTK, *rotation)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(layer, k_BGTK, v_BGTK)
        return self.o(attend(q_BHTK, k_BGTK, v_BGTK, mask).transpose(1, 2).flatten(2))
