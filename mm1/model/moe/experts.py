"""The experts of a layer as two stacked tensors, and the multiplication of each with its own tokens.

Laid out as transformers 5 does (gate and up fused), so that import is a copy. On a GPU in bf16 one grouped matrix
product serves all experts without the host knowing how many tokens each got; elsewhere a loop does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mm1.model.ffn import gated
from mm1.model.moe.kernels import expert_rows, fits, lowered


class Experts(nn.Module):
    """E SwiGLU layers side by side.

    Args:
        width: Width D of what they read.
        ffn_width: Inner width F of each.
        experts: How many.
        dropout: Share of the inner activations that training sets to zero (Switch, section 2.4: "expert dropout").
    """

    def __init__(self, width: int, ffn_width: int, experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.count, self.dropout = experts, dropout
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * ffn_width, width))
        self.down = nn.Parameter(torch.empty(experts, width, ffn_width))

    def forward(self, x_RD: Tensor, weights_R: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert -> each row through its expert, times its weight.

        The weight goes in before the down projection, so that its gradient needs no second [R, D] tensor.

        Args:
            x_RD: The first ``counts_E[0]`` rows belong to expert 0, and so on.
            weights_R: The router's weight of each row.
            counts_E: int[E], summing to R.
        """
        return self.answers(x_RD, weights_R, counts_E, self.gate_up, self.down)

    def answers(self, x_RD: Tensor, weights_R: Tensor, counts_E: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """The same with the weights of other experts, any number of them."""
        x_RD = lowered(x_RD)
        if fits(x_RD, *down.shape[1:]) and not (self.dropout and self.training):
            return expert_rows(x_RD, weights_R, counts_E, gate_up.to(x_RD.dtype), down.to(x_RD.dtype))
        return self._loop(x_RD, weights_R, counts_E, gate_up, down)

    def _loop(self, x_RD: Tensor, weights_R: Tensor, counts_E: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        counts = counts_E.tolist()
        rows, weights = x_RD.split(counts), weights_R.split(counts)
        # unbind, not indexing: indexing's backward would fill a whole [E, ...] gradient once for every expert
        parts = zip(rows, weights, gate_up.unbind(), down.unbind(), strict=True)
        return torch.cat([linear(self._inner(linear(x, wide), w), narrow) for x, w, wide, narrow in parts])

    def _inner(self, gate_up_R2F: Tensor, weights_R: Tensor) -> Tensor:
        hidden_RF = dropout(gated(gate_up_R2F), self.dropout, self.training)
        return hidden_RF * weights_R.to(hidden_RF.dtype).unsqueeze(-1)
