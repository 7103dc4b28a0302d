"""Multi-head mixture of experts: a token falls into sub-tokens that are routed each for itself (Wu et al. 2024).

More experts are asked about a token at no more cost. The first version (arXiv 2404.15045) has the parameters of a plain
mixture but several times its FLOPs; the second (arXiv 2411.16205) has both. With d the width, h heads, E experts of
inner width F, k of them visited, and SwiGLU's three matrices where the papers count two, they are

    plain           3 d F E parameters                      3 d F k multiplications a token
    multi-head      2 d d + 3 (d / h) f e parameters        2 d d + h * 3 (d / h) f j multiplications

so that equal parameters at e = E need f = h (F - 2 d / (3 E)), the first paper's 4 beta h d with beta = (8 E - 2) / 8 E
where F = 4 d and matrices are two; and equal multiplications f = (k F - 2 d / 3) / j, then equal parameters
e = h (E F - 2 d / 3) / f. Routers are left out: they are small and their sum is about the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mm1.errors import UserError, at_least
from mm1.model.moe.layer import ARGS, Mixture, MoE
from mm1.model.moe.routing import Places
from mm1.model.moe.stats import RouterStats

STEP = 8  # inner widths are multiples of it, which a GPU's matrix units ask for


class MultiHeadMoE(Mixture):
    """Head layer, sub-tokens through a mixture, merge layer.

    The router's statistics count sub-tokens; its losses are means over the sub-tokens of a token.

    Args:
        width: Width D of what is read.
        ffn_width: Inner width of the dense twin.
        moe: The plain mixture that this one is to equal, made of (width, ffn_width); its router and losses are kept.
        heads: Sub-tokens h of a token.
        match: What is to be equal: ``parameters`` (the first version: wider experts), ``flops`` and parameters (the
            second: more and narrower experts), or ``none``: experts of the same number and inner width.
        top_k: Experts that a sub-token visits, for ``flops`` alone; as many as heads if not given, as published.
        multiple: What the number of experts is a multiple of, for ``flops`` alone; 8 gives the published 40 and 96.

    Raises:
        UserError: A width that heads do not divide, or experts so narrow that head and merge layer cost more.
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        *,
        moe: Callable[[int, int], MoE],
        heads: int = 2,
        match: Literal["parameters", "flops", "none"] = "flops",
        top_k: int | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, {f"{ARGS}.heads": heads, f"{ARGS}.multiple": multiple})
        if width % heads:
            raise UserError(f"width {width} over {heads} heads; expected a divisor of the width ({ARGS}.heads)")
        if top_k is not None and match != "flops":
            raise UserError(f"top_k beside match: {match}; expected it in moe's own settings ({ARGS}.top_k)")
        self.heads = heads
        self.head, self.merge = nn.Linear(width, width), nn.Linear(width, width)
        with torch.device("meta"):
            plain = moe(width, ffn_width)
        experts, visited, inner_width = plain.experts.count, plain.router.top_k, plain.experts.down.shape[-1]
        if match == "parameters":
            inner_width = equal_parameters(width, inner_width, experts, heads)
        elif match == "flops":
            wanted = heads if top_k is None else top_k
            inner_width, experts = equal_flops(width, inner_width, experts, visited, heads, wanted, multiple)
            visited = wanted
        make = cast(Callable[..., MoE], moe)
        self.inner = make(width // heads, inner_width, experts=experts, top_k=visited, expert_width=None)

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, RouterStats]:
        """The layer's output and what the router did with the sub-tokens."""
        rows, positions, _ = x_BTD.shape
        sub_tokens = self.head(x_BTD).view(rows, positions * self.heads, -1)
        answers, stats = self.inner(sub_tokens, places.split(self.heads))
        losses = {name: getattr(stats, name) / self.heads for name in ("loss", "balance", "z")}
        return self.merge(answers.view(rows, positions, -1)), replace(stats, **losses)

    @property
    def idle(self) -> int:
        """Parameters of the experts that no sub-token visits, if they all visit others."""
        experts = self.inner.experts
        one = sum(parameter.numel() for parameter in experts.parameters()) // experts.count
        return one * max(0, experts.count - self.heads * self.inner.router.top_k)

    @property
    def multiplied(self) -> int:
        """Both layers, and everything within once for each sub-token."""
        return self.head.weight.numel() + self.merge.weight.numel() + self.heads * self.inner.multiplied


def equal_parameters(width: int, expert_width: int, experts: int, heads: int) -> int:
    """Inner width of experts whose multi-head mixture has the parameters of a plain one.

    Raises:
        UserError: There is none.
    """
    return _rounded(heads * (expert_width - 2 * width / (3 * experts)), STEP, width, expert_width)


def equal_flops(
    width: int, expert_width: int, experts: int, top_k: int, heads: int, wanted: int, multiple: int = 1
) -> tuple[int, int]:
    """Inner width and number of experts whose multi-head mixture has the FLOPs and parameters of a plain one.

    Args:
        width: Width D of a token.
        expert_width: Inner width of the plain experts.
        experts: How many of them there are.
        top_k: How many of them a token visits.
        heads: Sub-tokens of a token.
        wanted: Experts that a sub-token is to visit.
        multiple: What their number is to be a multiple of.

    Raises:
        UserError: There are none.
    """
    layers = 2 * width / 3  # head and merge, counted in inner width
    inner_width = _rounded((top_k * expert_width - layers) / wanted, STEP, width, expert_width)
    return inner_width, _rounded(heads * (experts * expert_width - layers) / inner_width, multiple, width, expert_width)


def _rounded(size: float, step: int, width: int, expert_width: int) -> int:
    if round(size / step) < 1:
        raise UserError(
            f"experts of {expert_width} at width {width} cost less than a head and a merge layer leave for them; "
            f"expected wider experts, fewer choices, or match: none ({ARGS}.match)"
        )
    return round(size / step) * step
