"""What routers, capacity, dispatch and experts hand to each other: which token goes to which expert, with what weight.

M = B * T tokens stand in the order of the batch. Rows are copies of tokens sorted by expert, R in all::

    tokens 0 1 2, top 2 of 3 experts:  0 -> 2, 0     1 -> 0, 1     2 -> 2, 1
    tokens_R    0 1 | 1 2 | 0 2        experts 0 | 1 | 2
    counts_E    2     2     2
    rows_MK     (4, 0)  (1, 2)  (5, 3)     where each choice of a token went
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """What a sparse layer is told of the positions it reads.

    Args:
        valid_BT: False at padding, which counts nowhere.
        image_BT: True where the token is a picture's.
        sources_BT: int64, the stream that a position is of.
        sources: How many streams there are.
        parts: Positions side by side that are sub-tokens of one token.
    """

    valid_BT: Tensor
    image_BT: Tensor
    sources_BT: Tensor
    sources: int = 1
    parts: int = 1

    @classmethod
    def of_text(cls, valid_BT: Tensor) -> Places:
        """Text of one source."""
        return cls(valid_BT, torch.zeros_like(valid_BT), torch.zeros_like(valid_BT, dtype=torch.int64))

    @property
    def groups(self) -> int:
        """Statistics are split by source and by modality: text and pictures of source 0, of source 1, ..."""
        return 2 * self.sources

    @property
    def groups_BT(self) -> Tensor:
        """int64[B, T], the group of each position."""
        return self.sources_BT * 2 + self.image_BT

    def split(self, parts: int) -> Places:
        """The same for positions that fall into ``parts`` sub-tokens each, side by side."""
        valid, image, sources = (
            t.repeat_interleave(parts, dim=1) for t in (self.valid_BT, self.image_BT, self.sources_BT)
        )
        return Places(valid, image, sources, self.sources, self.parts * parts)


@dataclass(frozen=True)
class Rows:
    """Copies of tokens sorted by expert. All shapes are known before anything is routed.

    Args:
        tokens_R: int64, the token that a row is a copy of.
        weights_R: The weight of each row's answer; zero in rows that only fill.
        counts_E: int64, rows of each expert, summing to R.
        rows_MK: int64, the row of each choice of each token, -1 where it was dropped; None where experts chose.
    """

    tokens_R: Tensor
    weights_R: Tensor
    counts_E: Tensor
    rows_MK: Tensor | None


class Choice(ABC):
    """Who goes where, before it is sorted."""

    @abstractmethod
    def rows(self, experts: int) -> Rows:
        """The copies, sorted by expert."""

    @abstractmethod
    def hot(self, tokens: int, experts: int) -> Tensor:
        """fp32[M, E], one where a token is with an expert."""

    @abstractmethod
    def dropped(self, hot_ME: Tensor) -> Tensor:
        """fp32[M], the share of a token's choices that nobody took, given :meth:`hot`."""


@dataclass(frozen=True)
class TokenChoice(Choice):
    """Every token chose its experts.

    Args:
        experts_MK: int64, best first, no expert twice.
        weights_MK: fp32 shares.
        kept_MK: False where a choice is dropped; None keeps all.
        limit: Rows that are enough for all that is kept, where less than all.
        even: Every expert has ``limit / E`` rows, which are enough for it; those that nobody needs only fill.
    """

    experts_MK: Tensor
    weights_MK: Tensor
    kept_MK: Tensor | None = None
    limit: int | None = None
    even: bool = False

    def keep(self, kept_MK: Tensor, limit: int | None = None, even: bool = False) -> TokenChoice:
        """The same without what is not kept, now or before."""
        kept_MK = kept_MK if self.kept_MK is None else kept_MK & self.kept_MK
        return replace(self, kept_MK=kept_MK, limit=self.limit if limit is None else limit, even=even)

    def rows(self, experts: int) -> Rows:
        """Sort by expert, stably, so that an expert reads its tokens in their order."""
        if self.even:
            return self._even_rows(experts)
        top_k = self.experts_MK.shape[-1]
        chosen_C, weights_C = self.experts_MK.flatten(), self.weights_MK.flatten()
        if self.kept_MK is not None:  # what is dropped goes behind the last expert
            kept_C = self.kept_MK.flatten()
            chosen_C, weights_C = chosen_C.where(kept_C, experts), weights_C * kept_C
        order_C = chosen_C.argsort(stable=True)
        rows_C = inverse(order_C)
        counts = torch.zeros(experts + 1, dtype=torch.int64, device=chosen_C.device)
        counts_E = counts.scatter_add_(0, chosen_C, torch.ones_like(chosen_C))[:experts]
        if self.kept_MK is not None:
            order_C = order_C[: self.limit]
            rows_C = rows_C.where(kept_C, -1)
            # rows that are left over have no weight; the last expert answers them, so that every row is written
            counts_E = torch.cat([counts_E[:-1], len(order_C) - counts_E[:-1].sum(0, keepdim=True)])
        return Rows(order_C // top_k, weights_C.index_select(0, order_C), counts_E, rows_C.view_as(self.experts_MK))

    def _even_rows(self, experts: int) -> Rows:
        """Each choice at its place among the rows of its expert, and tokens without weight at places left free."""
        assert self.kept_MK is not None
        assert self.limit is not None
        kept_C, rows = self.kept_MK.flatten(), self.limit
        chosen_C = self.experts_MK.flatten().where(kept_C, experts)
        rows_C = (chosen_C * (rows // experts) + places_in_line(chosen_C)).where(kept_C, rows)  # the last is for nobody
        choices_C = torch.arange(len(rows_C), device=rows_C.device)
        any_R = torch.arange(rows + 1, device=rows_C.device) % len(self.kept_MK)
        tokens_R = any_R.scatter(0, rows_C, choices_C // self.experts_MK.shape[-1])
        weights_R = self.weights_MK.new_zeros(rows + 1).scatter(0, rows_C, self.weights_MK.flatten())
        counts_E = torch.full((experts,), rows // experts, device=rows_C.device)
        rows_MK = rows_C.where(kept_C, -1).view_as(self.experts_MK)
        return Rows(tokens_R[:rows], weights_R[:rows], counts_E, rows_MK)

    def hot(self, tokens: int, experts: int) -> Tensor:
        """fp32[M, E]."""
        hot_ME = torch.zeros(tokens, experts, device=self.experts_MK.device)
        ones = torch.ones_like(self.experts_MK) if self.kept_MK is None else self.kept_MK
        return hot_ME.scatter_(1, self.experts_MK, ones.float())

    def dropped(self, hot_ME: Tensor) -> Tensor:
        """fp32[M], of the choices that the router itself kept."""
        wanted_M = self.experts_MK.shape[-1] if self.kept_MK is None else self.kept_MK.sum(1).clamp(min=1)
        return 1 - hot_ME.sum(1) / wanted_M


def inverse(order: Tensor) -> Tensor:
    """int64[C], the permutation that undoes ``order``."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def places_in_line(line_C: Tensor) -> Tensor:
    """int64[C]: how many stand before each in the same line, ``line_C`` saying in which."""
    sorted_C, order_C = line_C.sort(stable=True)
    place_C = torch.arange(len(line_C), device=line_C.device) - torch.searchsorted(sorted_C, sorted_C)
    return torch.empty_like(place_C).scatter_(0, order_C, place_C)


@dataclass(frozen=True)
class ExpertChoice(Choice):
    """Every expert chose its tokens (Zhou et al. 2022).

    Args:
        tokens_EN: int64, tokens of each expert, none twice.
        weights_EN: fp32 shares.
        kept_EN: False where an expert found nobody more (padding); None keeps all.
    """

    tokens_EN: Tensor
    weights_EN: Tensor
    kept_EN: Tensor | None = None

    def rows(self, experts: int) -> Rows:
        """They are sorted already."""
        counts_E = torch.full((experts,), self.tokens_EN.shape[1], device=self.tokens_EN.device)
        weights_EN = self.weights_EN if self.kept_EN is None else self.weights_EN * self.kept_EN
        return Rows(self.tokens_EN.flatten(), weights_EN.flatten(), counts_E, None)

    def hot(self, tokens: int, experts: int) -> Tensor:
        """fp32[M, E]."""
        hot_EM = torch.zeros(experts, tokens, device=self.tokens_EN.device)
        ones = torch.ones_like(self.tokens_EN) if self.kept_EN is None else self.kept_EN
        return hot_EM.scatter_(1, self.tokens_EN, ones.float()).T

    def dropped(self, hot_ME: Tensor) -> Tensor:
        """fp32[M]: one for tokens that no expert took."""
        return 1 - hot_ME.amax(1)


@dataclass(frozen=True)
class Routing:
    """A router's answer.

    Args:
        choice: Who goes where.
        logits_BTE: fp32, the scores before they were squashed: what the z-loss looks at.
        shares_BTE: fp32, what each expert was given of a token, summing to one: what balance losses look at.
        chance_BTE: fp32, the probability that noise brings an expert among the chosen (noisy top-k), else None.
    """

    choice: Choice
    logits_BTE: Tensor
    shares_BTE: Tensor
    chance_BTE: Tensor | None = None
