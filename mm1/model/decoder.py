"""The language model: a causal transformer with RMSNorm, rotary positions and SwiGLU, dense or MoE every n-th layer.

Norms, activation and vocabulary of MM1's decoder are unpublished; these are the defaults of the framework it was
trained in, and those of Llama, so that open weights fit (shapes: docs of configs/model).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mm1.errors import UserError, at_least
from mm1.model.attention import Attention, KVCache, Mask, document_mask, rotary
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import MoE
from mm1.model.moe.router import RouterStats


@dataclass
class Output:
    """What the decoder returns.

    Args:
        hidden_BTD: The last hidden states after the final norm; ``decoder.logits`` makes scores of them.
        router: What the routers of the MoE layers did, zeros in a dense model.
    """

    hidden_BTD: Tensor
    router: RouterStats


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, width: int, heads: int, kv_heads: int, ffn: SwiGLU | MoE, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, kv_heads)
        self.ffn_norm = nn.RMSNorm(width, eps=norm_eps)
        self.ffn = ffn

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Mask,
        valid_BT: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> tuple[Tensor, RouterStats | None]:
        """One layer; the second value is the router's, None where the feed-forward is dense."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, mask, cache, layer)
        normed_BTD = self.ffn_norm(x_BTD)
        if isinstance(self.ffn, MoE):
            y_BTD, stats = self.ffn(normed_BTD, valid_BT)
            return x_BTD + y_BTD, stats
        return x_BTD + self.ffn(normed_BTD), None


class Decoder(nn.Module):
    """Token embedding, layers, final norm, head.

    Args:
        vocabulary: Token ids.
        width: Width D.
        layers: Layers L.
        heads: Query heads; the head width is ``width / heads``.
        ffn_width: Inner width of every feed-forward layer, dense or expert.
        kv_heads: Key-value heads, a divisor of ``heads``; as many as ``heads`` if not given.
        moe: Makes a sparse layer of (width, ffn_width); None for a dense decoder.
        moe_every: Every n-th layer is sparse: layers n - 1, 2n - 1, ... counted from 0.
        tied: Whether the head is the embedding.
        rope_base: Base of the rotary angles.
        norm_eps: Epsilon of RMSNorm.
        checkpointing: Recompute layers in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        layers: int,
        heads: int,
        ffn_width: int,
        kv_heads: int | None = None,
        moe: Callable[[int, int], MoE] | None = None,
        moe_every: int = 2,
        tied: bool = False,
        rope_base: float = 10000.0,
        norm_eps: float = 1e-5,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        sizes = {"vocabulary": vocabulary, "width": width, "layers": layers, "heads": heads, "ffn_width": ffn_width}
        at_least(1, {f"model.decoder.init_args.{name}": size for name, size in {**sizes, "kv_heads": kv_heads}.items()})
        _check_heads(width, heads, kv_heads)
        if moe and not 1 <= moe_every <= layers:
            raise UserError(
                f"moe_every={moe_every} of {layers} layers makes none sparse; expected 1 to {layers} "
                f"(model.decoder.init_args.moe_every)"
            )
        self.vocabulary, self.width, self.heads, self.kv_heads = vocabulary, width, heads, kv_heads
        self.ffn_width, self.rope_base, self.checkpointing = ffn_width, rope_base, checkpointing

        def ffn(index: int) -> SwiGLU | MoE:
            if moe and (index + 1) % moe_every == 0:
                return moe(width, ffn_width)
            return SwiGLU(width, ffn_width)

        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, kv_heads, ffn(i), norm_eps) for i in range(layers))
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """Weight of the head, the embedding's if they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of every vocabulary entry, fp32[..., vocabulary]."""
        return nn.functional.linear(hidden_BTD, self.head_VD).float()

    def forward(self, x_BTD: Tensor, segments_BT: Tensor, positions_BT: Tensor, cache: KVCache | None = None) -> Output:
        """Embedded positions -> hidden states.

        Args:
            x_BTD: Embedded tokens and pictures; with a cache, the new positions only.
            segments_BT: int64[B, T], 0 is padding; attention never leaves a segment.
            positions_BT: int64[B, T], position within the document.
            cache: Where earlier keys and values are and new ones go.
        """
        mask = document_mask(segments_BT) if cache is None else cache.mask(segments_BT)
        rotation = rotary(positions_BT, self.width // self.heads, self.rope_base)
        valid_BT, routers = segments_BT > 0, []
        for index, layer in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():
                recompute = partial(checkpoint, layer, use_reentrant=False, context_fn=_keep_routing)
                x_BTD, stats = recompute(x_BTD, rotation, mask, valid_BT)
            else:
                x_BTD, stats = layer(x_BTD, rotation, mask, valid_BT, cache, index)
            routers += [] if stats is None else [stats]
        if cache is not None:
            cache.length += x_BTD.shape[1]
        return Output(self.norm(x_BTD), RouterStats.over_layers(routers, x_BTD))

    def new_cache(self, rows: int, tokens: int) -> KVCache:
        """An empty cache for ``rows`` rows of at most ``tokens`` positions, where and as the weights are."""
        weight = self.norm.weight
        shape = (len(self.layers), rows, self.kv_heads, tokens, self.width // self.heads)
        segments_BT = torch.zeros(rows, tokens, dtype=torch.int64, device=weight.device)
        return KVCache(weight.new_empty(shape), weight.new_empty(shape), segments_BT)


def _keep_routing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Keep the choice of experts, recompute the rest: a near-tie must not send a token elsewhere in the backward."""
    return create_selective_checkpoint_contexts([torch.ops.aten.topk.default])


def _check_heads(width: int, heads: int, kv_heads: int) -> None:
    if width % heads or (width // heads) % 2:
        raise UserError(
            f"width {width} over {heads} heads; expected an even head width (model.decoder.init_args.heads)"
        )
    if heads % kv_heads:
        raise UserError(
            f"{kv_heads} key-value heads for {heads} heads; expected a divisor (model.decoder.init_args.kv_heads)"
        )
