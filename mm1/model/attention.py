"""Causal self-attention that stays inside a document: rotary positions, grouped key-value heads, cached keys.

Five ways compute the same thing, and :func:`attend` picks. A CPU has no backward for flex_attention, so it takes
scaled-dot-product attention with a boolean mask; a GPU takes flex_attention with a block mask, because a dense mask
would leave the fast kernels; decoding takes the boolean mask over the cache, and reads prompts that begin at
the first place of their rows without any, since what pads them on the right comes after all that counts; nor does a
row need one that is one document to its positions. One new position of many slots reads on a GPU what each has filled.
Grouped heads: Ainslie et al. 2023; norms of queries and keys: Dehghani et al. 2023; sliding window: Mistral 7B,
arXiv 2310.06825.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from mm1.model.rope import rotate

Mask: TypeAlias = "Tensor | BlockMask | Filled | None"  # None: every position sees those before it and itself
UNBOUNDED = 2**30  # a window that nothing leaves


class Filled(NamedTuple):
    """What one new position of each slot sees on a GPU: places ``last_S - window + 1`` to ``last_S`` of its own."""

    last_S: Tensor
    window: int


def document_mask(segments_BT: Tensor, window: int | None = None) -> Mask:
    """Who may look at whom in packed rows, built once per batch and shared by all layers of the same ``window``.

    The row of :mod:`mm1.batch`, ``x`` = may look, on the right with a window of 2; padding looks at padding, so that
    no row of the mask is empty::

        segments  1 1 1 1 2 0       1 1 1 1 2 0
              1   x                 x
              1   x x               x x
              1   x x x               x x
              1   x x x x               x x
              2           x                 x
              0             x                 x
    """
    if not segments_BT.is_cuda:
        return causal_mask(segments_BT, segments_BT, 0, window)
    rows, tokens = segments_BT.shape
    may_look = same_document(segments_BT, window)
    return _compiled(create_block_mask)(may_look, rows, None, tokens, tokens, device=segments_BT.device)


def same_document(segments_BT: Tensor, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same rule for one pair of places, as flex_attention wants it.

    A window counts places of the row, which are positions of the document because a document stands in one piece.
    """

    def may_look(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (segments_BT[row, query] == segments_BT[row, key])
        return seen if window is None else seen & (query - key < window)

    return may_look


def causal_mask(queries_BT: Tensor, keys_BT: Tensor, first: int, window: int | None = None) -> Tensor:
    """bool[B, 1, queries, keys] from the segments of both; query 0 stands at position ``first`` of the keys."""
    queries, keys = queries_BT.shape[1], keys_BT.shape[1]
    near = torch.ones(queries, keys, dtype=torch.bool, device=keys_BT.device).tril(first)
    if window is not None:
        near = near.triu(first - window + 1)
    return (near & (queries_BT[:, :, None] == keys_BT[:, None, :])).unsqueeze(1)


def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Mask, share: int | None = None) -> Tensor:
    """Softmax attention under ``mask``; each of the G key-value heads serves ``share`` query heads, H / G of them.

    Whoever knows ``share`` says it: to a compiler that has seen several shapes a quotient of sizes is no number.
    """
    share = q_BHTK.shape[1] // k_BGTK.shape[1] if share is None else share
    if isinstance(mask, Filled):
        q_SHK = q_BHTK.squeeze(2).to(k_BGTK.dtype)
        return _attend_slots(q_SHK, k_BGTK, v_BGTK, mask.last_S, mask.window).unsqueeze(2).to(q_BHTK.dtype)
    if isinstance(mask, BlockMask):
        # in a layer that is compiled anyway it is named as it is: the compiler does not see through Lightning's wrapper
        flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
        return flex(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=share > 1)
    if share > 1 and mask is not None and q_BHTK.shape[2] == 1:  # the heads of a group as queries: nothing is repeated
        q_BGSK = q_BHTK.unflatten(1, (-1, share)).squeeze(3)
        return scaled_dot_product_attention(q_BGSK, k_BGTK, v_BGTK, attn_mask=mask).flatten(1, 2).unsqueeze(2)
    if share > 1 and q_BHTK.is_cuda and (mask is not None or q_BHTK.dtype == torch.float32):
        # fused kernels that take a mask, or fp32, take no groups; the other one holds all scores
        k_BGTK, v_BGTK = (x_BGTK.repeat_interleave(share, dim=1) for x_BGTK in (k_BGTK, v_BGTK))
        share = 1
    return scaled_dot_product_attention(
        q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, is_causal=mask is None, enable_gqa=share > 1
    )


@torch.library.custom_op("mm1::attend_slots", mutates_args=())
def _attend_slots(q_SHK: Tensor, k_SGTK: Tensor, v_SGTK: Tensor, last_S: Tensor, window: int) -> Tensor:
    from mm1.model import step_triton  # a GPU's torch brings Triton along, a CPU's does not

    return step_triton.attend_slots(q_SHK, k_SGTK, v_SGTK, last_S, window)


@_attend_slots.register_fake
def _(q_SHK: Tensor, k_SGTK: Tensor, v_SGTK: Tensor, last_S: Tensor, window: int) -> Tensor:
    return q_SHK.new_empty(q_SHK.shape)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first use: without it flex_attention holds all scores, and on a CPU it is never needed."""
    return torch.compile(function)


class Cache(Protocol):
    """Where a decoder finds keys and values of what was read before, and leaves those of what it reads."""

    length: int

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return all that may be looked at."""

    def mask(self, segments_BT: Tensor, window: int | None = None) -> Mask:
        """Who of the new positions may look at what :meth:`append` returns."""


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

    def mask(self, segments_BT: Tensor, window: int | None = None) -> Tensor:
        """Note the segments of new positions and return who of them may look at what is stored."""
        end = self.length + segments_BT.shape[1]
        self.segments_BT[:, self.length : end] = segments_BT
        return causal_mask(segments_BT, self.segments_BT[:, :end], self.length, window)


class Attention(nn.Module):
    """Self-attention of one layer.

    Args:
        width: Decoder width D.
        heads: Query heads H.
        kv_heads: Key-value heads G, a divisor of H.
        head_width: Head width K.
        bias: Whether query, key and value projections have biases, or the output's as well (``all``).
        qk_norm: RMSNorm of queries and keys before they are turned: over each head or over all heads at once.
        norm_eps: Epsilon of these norms.
        clip: Largest absolute value of queries, keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        *,
        bias: Literal["none", "qkv", "all"] = "none",
        qk_norm: Literal["none", "head", "full"] = "none",
        norm_eps: float = 1e-5,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.head_width, self.clip, self.share = head_width, clip, heads // kv_heads
        self.q = nn.Linear(width, heads * head_width, bias=bias != "none")
        self.k = nn.Linear(width, kv_heads * head_width, bias=bias != "none")
        self.v = nn.Linear(width, kv_heads * head_width, bias=bias != "none")
        self.o = nn.Linear(heads * head_width, width, bias=bias == "all")
        self.q_norm: nn.RMSNorm | None = None
        self.k_norm: nn.RMSNorm | None = None
        if qk_norm != "none":
            normed = (heads, kv_heads) if qk_norm == "full" else (1, 1)
            self.q_norm, self.k_norm = (nn.RMSNorm(n * head_width, eps=norm_eps) for n in normed)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Mix positions; with a ``cache``, ``x_BTD`` is only the new ones and ``layer`` says whose keys are meant."""
        q_BHTK, k_BGTK = self._heads(self.q, self.q_norm, x_BTD), self._heads(self.k, self.k_norm, x_BTD)
        q_BHTK, k_BGTK = rotate(q_BHTK, *rotation), rotate(k_BGTK, *rotation)
        v_BGTK = self._heads(self.v, None, x_BTD)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(layer, k_BGTK, v_BGTK)
        return self.o(attend(q_BHTK, k_BGTK, v_BGTK, mask, self.share).transpose(1, 2).flatten(2))

    def _heads(self, project: nn.Linear, norm: nn.RMSNorm | None, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, heads, T, K]: projected, normed, clipped, split."""
        y_BTX = project(x_BTD)
        if norm is not None:  # over as many numbers as it has weights: those of a head, or all
            split = y_BTX.to(norm.weight.dtype).unflatten(-1, (-1, norm.weight.numel()))
            y_BTX = norm(split).flatten(-2).to(y_BTX.dtype)
        if self.clip is not None:
            y_BTX = y_BTX.clamp(-self.clip, self.clip)
        return y_BTX.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
