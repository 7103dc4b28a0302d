"""The dense feed-forward layer: SwiGLU (Shazeer 2020).

Gate and up projection are one matrix: the input is read once, and an expert of :mod:`mm1.model.moe.experts` is this
very layer stacked, so that a dense layer becomes an expert, or an imported one either, by copying.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of a tensor that holds both halves [..., 2F] -> [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases.

    Args:
        width: Decoder width D.
        ffn_width: Inner width F.
    """

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Each position for itself."""
        return self.down(gated(self.gate_up(x_BTD)))
