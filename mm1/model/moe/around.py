"""A dense layer before or after the sparse one (ST-MoE, section 5): better for the same number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routing import Places
from mm1.model.moe.stats import RouterStats


class Around(Mixture):
    """Sparse and dense layers in turn, each reading what it is given plus what those before it answered, normalised.

    ::

        place: before        x -> dense -> + -> norm -> sparse -> answer = dense + sparse
                             x ----------- +

    The answer is the sum of all answers. As the whole stands in the place of one feed-forward layer, the first reads
    what that would read, a normalised copy of the residual stream.

    Args:
        width: Width D of what is read.
        ffn_width: Inner width of the dense layers, and of the sparse one's dense twin.
        moe: Makes the sparse layer of (width, ffn_width).
        place: Where dense layers stand.
        norm_eps: Epsilon of RMSNorm.
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        *,
        moe: Callable[[int, int], Mixture],
        place: Literal["before", "after", "both"] = "before",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.before = SwiGLU(width, ffn_width) if place != "after" else None
        self.before_norm = nn.RMSNorm(width, eps=norm_eps) if place != "after" else None
        self.sparse = moe(width, ffn_width)
        self.after_norm = nn.RMSNorm(width, eps=norm_eps) if place != "before" else None
        self.after = SwiGLU(width, ffn_width) if place != "before" else None

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, RouterStats]:
        """The sum of all answers, and what the router did."""
        if self.before is None or self.before_norm is None:
            y_BTD, stats = self.sparse(x_BTD, places)
        else:
            y_BTD = self.before(x_BTD)
            more_BTD, stats = self.sparse(self.before_norm(x_BTD + y_BTD), places)
            y_BTD = y_BTD + more_BTD
        if self.after is not None and self.after_norm is not None:
            y_BTD = y_BTD + self.after(self.after_norm(x_BTD + y_BTD))
        return y_BTD, stats

    @property
    def idle(self) -> int:
        """Experts that a position does not meet."""
        return self.sparse.idle

    @property
    def multiplied(self) -> int:
        """Everything but norms and idle experts."""
        dense = [layer for layer in (self.before, self.after) if layer is not None]
        return self.sparse.multiplied + sum(matrix.numel() for layer in dense for matrix in layer.parameters())
