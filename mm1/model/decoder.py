"""The language model: a causal transformer with RMSNorm, rotary positions and SwiGLU, dense or MoE every n-th layer.

Norms, activation and vocabulary of MM1's decoder are unpublished; the defaults are those of the framework it was
trained in, and of Llama (shapes: docs of configs/model). The options are where open models differ from Llama, so that
their weights fit: Mistral, Qwen 2 and 3, OLMo 2, SmolLM, Mixtral, OLMoE, Qwen3-MoE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mm1.errors import UserError, at_least
from mm1.model.attention import Attention, Cache, KVCache, Mask, document_mask
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routing import Places
from mm1.model.moe.stats import RouterStats
from mm1.model.recompute import CHOICE, PRODUCTS, Checkpointing, checked, recomputed
from mm1.model.rope import Rope
from mm1.model.shape import ARGS, head_shape, sparse_layers, windows


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
    """Attention, then feed-forward; each is added back, normalised ``before`` it reads or ``after`` it has answered."""

    def __init__(
        self,
        width: int,
        attention: Attention,
        ffn: SwiGLU | Mixture,
        norm_eps: float,
        norm_place: Literal["before", "after"] = "before",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.before = norm_place == "before"
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = attention
        self.ffn_norm = nn.RMSNorm(width, eps=norm_eps)
        self.ffn = ffn

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Mask,
        places: Places,
        cache: Cache | None = None,
        layer: int = 0,
        selective: bool = False,
    ) -> tuple[Tensor, RouterStats | None]:
        """One layer; the second value is the router's, None where the feed-forward is dense.

        ``selective`` lets the backward pass recompute what is cheap, here and not around the layer, so that a compiler
        of the layer sees it.
        """
        run = recomputed(self._answer, PRODUCTS, self.unread) if selective else self._answer
        return run(x_BTD, rotation, mask, places, cache, layer)

    @property
    def unread(self) -> tuple[int, int] | None:
        """Size of the last product's matrix, if its answer is just added to the residual and no other has that size."""
        down = self.ffn.down if isinstance(self.ffn, SwiGLU) else None
        if type(down) is not nn.Linear or not self.before or self.dropout.p:
            return None
        return None if down.in_features == self.attention.o.in_features else (down.in_features, down.out_features)

    def _answer(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Mask,
        places: Places,
        cache: Cache | None,
        layer: int,
    ) -> tuple[Tensor, RouterStats | None]:
        read_BTD = self.attention_norm(x_BTD) if self.before else x_BTD
        y_BTD = self.attention(read_BTD, rotation, mask, cache, layer)
        x_BTD = x_BTD + self.dropout(y_BTD if self.before else self.attention_norm(y_BTD.to(x_BTD.dtype)))
        read_BTD = self.ffn_norm(x_BTD) if self.before else x_BTD
        y_BTD, stats = self.ffn(read_BTD, places) if isinstance(self.ffn, Mixture) else (self.ffn(read_BTD), None)
        return x_BTD + self.dropout(y_BTD if self.before else self.ffn_norm(y_BTD.to(x_BTD.dtype))), stats


class Decoder(nn.Module):
    """Token embedding, layers, final norm, head.

    Args:
        vocabulary: Token ids.
        width: Width D.
        layers: Layers L.
        heads: Query heads.
        ffn_width: Inner width of every feed-forward layer, dense or expert.
        kv_heads: Key-value heads, a divisor of ``heads``; as many as ``heads`` if not given.
        head_width: Head width K, ``width / heads`` if not given.
        attention_bias: Which projections of attention have biases: none, all but the output's, or all four.
        qk_norm: RMSNorm of queries and keys, over each head (Qwen 3) or over all at once (``full``: OLMo 2).
        clip_qkv: Largest absolute value of queries, keys and values (OLMoE); no limit if not given.
        window_tokens: How many positions a position sees, its own included; its whole document if not given.
        windowed_layers: Layers, counted from 0, that ``window_tokens`` is for; all of them if not given.
        across_documents: Whether training lets a position see earlier documents of its row too (as GPT-3, Brown et al.
            2020, section 2), which MM1 does not.
        moe: Makes a sparse layer of (width, ffn_width); None for a dense decoder.
        moe_every: Every n-th layer is sparse: layers n - 1, 2n - 1, ... counted from 0.
        dense_layers: Layers that stay dense although ``moe_every`` falls on them (Qwen3-MoE).
        tied: Whether the head is the embedding.
        rope: How rotary positions are stretched to longer texts, a class of :mod:`mm1.model.rope`; not if None.
        rope_base: Base of the rotary angles, stretched or not.
        norm_place: Whether a branch reads a normalised copy, or its answer is normalised (``after``: OLMo 2).
        norm_eps: Epsilon of RMSNorm.
        dropout: Share of each branch's answer that training sets to zero; experts have their own (``expert_dropout``).
        checkpointing: What the backward pass recomputes instead of keeping it: nothing (false), whole layers (true), or
            what is cheap in them, all but products and attention (``selective``, see :mod:`mm1.model.recompute`).
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
        head_width: int | None = None,
        attention_bias: Literal["none", "qkv", "all"] = "none",
        qk_norm: Literal["none", "head", "full"] = "none",
        clip_qkv: float | None = None,
        window_tokens: int | None = None,
        windowed_layers: list[int] | None = None,
        across_documents: bool = False,
        moe: Callable[[int, int], Mixture] | None = None,
        moe_every: int = 2,
        dense_layers: Sequence[int] = (),
        tied: bool = False,
        rope: Rope | None = None,
        rope_base: float = 10000.0,
        norm_place: Literal["before", "after"] = "before",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "width": width, "layers": layers, "heads": heads, "ffn_width": ffn_width}
        at_least(1, {f"{ARGS}.{name}": size for name, size in sizes.items()})
        if not 0 <= dropout < 1:
            raise UserError(f"{ARGS}.dropout is {dropout}; expected at least 0 and less than 1")
        if clip_qkv is not None and not clip_qkv > 0:
            raise UserError(f"{ARGS}.clip_qkv is {clip_qkv}; expected a number above 0, or null")
        self.vocabulary, self.width, self.heads, self.ffn_width = vocabulary, width, heads, ffn_width
        self.kv_heads, self.head_width = head_shape(width, heads, kv_heads, head_width)
        self.windows_L, self.across_documents = windows(layers, window_tokens, windowed_layers), across_documents
        self.rope, self.rope_base = rope or Rope(), rope_base
        self.checkpointing = checked(checkpointing, f"{ARGS}.checkpointing")
        self.rope.check(self.head_width)
        sparse = sparse_layers(layers, moe_every, dense_layers) if moe else []
        shape = (width, heads, self.kv_heads, self.head_width)
        attention = partial(Attention, *shape, bias=attention_bias, qk_norm=qk_norm, norm_eps=norm_eps, clip=clip_qkv)

        def layer(index: int) -> Layer:
            ffn = moe(width, ffn_width) if moe and index in sparse else SwiGLU(width, ffn_width)
            return Layer(width, attention(), ffn, norm_eps, norm_place, dropout)

        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(layer(index) for index in range(layers))
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """Weight of the head, the embedding's if they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of every vocabulary entry, fp32[..., vocabulary]."""
        return nn.functional.linear(hidden_BTD, self.head_VD).float()

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor,
        positions_BT: Tensor,
        cache: Cache | None = None,
        places: Places | None = None,
    ) -> Output:
        """Embedded positions -> hidden states.

        Args:
            x_BTD: Embedded tokens and pictures; with a cache, the new positions only.
            segments_BT: int64[B, T], 0 is padding; attention never leaves a segment.
            positions_BT: int64[B, T], position within the document.
            cache: Where earlier keys and values are and new ones go.
            places: What routers are told of the positions; text of one source if not given.
        """
        masks = {window: self._mask(segments_BT, window, cache) for window in set(self.windows_L)}
        rotation = self.rope.rotation(positions_BT, segments_BT, self.head_width, self.rope_base)
        places, routers = places or Places.of_text(segments_BT > 0), []
        again = self.checkpointing if cache is None and torch.is_grad_enabled() else False
        for index, layer in enumerate(self.layers):
            mask = masks[self.windows_L[index]]
            run = recomputed(layer, CHOICE) if again is True else layer
            x_BTD, stats = run(x_BTD, rotation, mask, places, cache, index, again == "selective")
            routers += [] if stats is None else [stats]
        if cache is not None:
            cache.length += x_BTD.shape[1]
        return Output(self.norm(x_BTD), RouterStats.over_layers(routers, x_BTD))

    def _mask(self, segments_BT: Tensor, window: int | None, cache: Cache | None) -> Mask:
        if cache is not None:
            return cache.mask(segments_BT, window)
        if not self.across_documents:
            return document_mask(segments_BT, window)
        # padding stands at the end, where nothing looks for it
        return None if window is None else document_mask(torch.ones_like(segments_BT), window)

    def check_generates(self) -> None:
        """Refuse to go on token by token where a router has to see later ones.

        Raises:
            UserError: What becomes of a position depends on later ones.
        """
        if not all(layer.ffn.causal for layer in self.layers if isinstance(layer.ffn, Mixture)):
            raise UserError(
                "a router of this model looks beyond the tokens so far, so it cannot generate; expected one that does "
                "not, such as ExpertChoice with at_inference: threshold in evaluation mode (model.decoder.moe.router)"
            )

    def new_cache(self, rows: int, tokens: int) -> KVCache:
        """An empty cache for ``rows`` rows of at most ``tokens`` positions, where and as the weights are.

        Raises:
            UserError: What becomes of a position depends on later ones, so nothing can be read token by token.
        """
        self.check_generates()
        weight = self.norm.weight
        shape = (len(self.layers), rows, self.kv_heads, tokens, self.head_width)
        segments_BT = torch.zeros(rows, tokens, dtype=torch.int64, device=weight.device)
        return KVCache(weight.new_empty(shape), weight.new_empty(shape), segments_BT)
