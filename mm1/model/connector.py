"""From an encoder's patches to tokens of the decoder (MM1, section 3.2; C-Abstractor: Honeybee, arXiv 2312.06742).

A new connector is one class here, or a file of its own, and one YAML.
"""

from __future__ import annotations

from math import isqrt

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import Bottleneck, RegStage
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention

from mm1.errors import UserError
from mm1.model.channels_last import run_stage
from mm1.model.positions import follow_grid


class Connector(nn.Module):
    """Base of all connectors: square grids of patches in, ``tokens`` tokens out.

    Args:
        d_in: Width V of the encoder.
        d_out: Width D of the decoder.
        grid: Patches a side.
        tokens: Tokens N per picture, a square number.
    """

    def __init__(self, d_in: int, d_out: int, grid: int, tokens: int) -> None:
        super().__init__()
        if tokens < 1 or isqrt(tokens) ** 2 != tokens:
            raise UserError(
                f"the connector is to make {tokens} tokens per picture; expected a square such as 64 or 144 "
                f"(model.connector.init_args.tokens)"
            )
        self.d_in, self.d_out, self.grid, self.tokens, self.side = d_in, d_out, grid, tokens, isqrt(tokens)

    def _check_pooling(self) -> None:
        """Refuse to pool a grid to a finer one, which would only repeat patches."""
        if self.side > self.grid:
            raise UserError(
                f"the encoder makes {self.grid} x {self.grid} patches and the connector is to pool them to "
                f"{self.side} x {self.side} tokens; expected no more tokens than patches "
                f"(model.connector.init_args.tokens, model.vision.init_args.image_px)"
            )

    def forward(self, patches_IPV: Tensor) -> Tensor:
        """[I, P, V] -> [I, N, D]."""
        raise NotImplementedError

    def quiet(self) -> None:
        """Let residual branches, if there are any, begin silent (Goyal et al. 2017, section 5.1)."""

    def _map(self, patches_IPV: Tensor) -> Tensor:
        """Patches as the feature map [I, V, grid, grid] they are."""
        return patches_IPV.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class CAbstractor(Connector):
    """Honeybee's convolutional abstractor: RegNet blocks, adaptive average pooling, RegNet blocks, a 2-layer MLP.

    Locality of the picture is kept, and any square number of tokens can be asked for. Each block is a bottleneck of
    ratio 1 with a depth-wise 3x3 convolution and squeeze-excitation. Whether MM1 kept depth 3 and width 1024 is
    unpublished; these are Honeybee's.

    Args:
        d_in: Width of the encoder.
        d_out: Width of the decoder.
        grid: Patches a side.
        tokens: Tokens per picture, a square.
        width: Channels of the convolutions.
        depth: Blocks before the pooling, and again after it.
    """

    def __init__(
        self, d_in: int, d_out: int, grid: int, *, tokens: int = 144, width: int = 1024, depth: int = 3
    ) -> None:
        super().__init__(d_in, d_out, grid, tokens)
        self._check_pooling()
        self.positions_1PV = nn.Parameter(torch.empty(1, grid**2, d_in))
        self.before = _blocks(depth, d_in, width)
        self.after = _blocks(depth, width, width)
        self.readout = nn.Sequential(nn.Linear(width, d_out), nn.SiLU(), nn.Linear(d_out, d_out))
        follow_grid(self, "positions_1PV", grid)

    def forward(self, patches_IPV: Tensor) -> Tensor:
        """[I, P, V] -> [I, N, D]."""
        placed_IPV = patches_IPV + self.positions_1PV
        if patches_IPV.is_cuda:
            return self.readout(self._channels_last(placed_IPV))
        map_ICSS = self.after(pooled(self.before(self._map(placed_IPV)), self.side))
        return self.readout(map_ICSS.flatten(2).transpose(1, 2))

    def _channels_last(self, placed_IPV: Tensor) -> Tensor:
        """The same convolutions in the order that a GPU likes, [I, N, C]."""
        map_ISSC = run_stage(self.before, placed_IPV.unflatten(1, (self.grid, self.grid)))
        pooled_ICSS = pooled(map_ISSC.permute(0, 3, 1, 2), self.side)
        return run_stage(self.after, pooled_ICSS.permute(0, 2, 3, 1)).flatten(1, 2)

    def quiet(self) -> None:
        """Zero the last norm of every block."""
        for block in self.modules():
            if isinstance(block, Bottleneck):
                block.zero_init_last()


class AveragePool(Connector):
    """Mean over squares of patches, then one linear layer (Emu2's way).

    Args:
        d_in: Width of the encoder.
        d_out: Width of the decoder.
        grid: Patches a side.
        tokens: Tokens per picture, a square.
    """

    def __init__(self, d_in: int, d_out: int, grid: int, *, tokens: int = 144) -> None:
        super().__init__(d_in, d_out, grid, tokens)
        self._check_pooling()
        self.readout = nn.Linear(d_in, d_out)

    def forward(self, patches_IPV: Tensor) -> Tensor:
        """[I, P, V] -> [I, N, D]."""
        return self.readout(pooled(self._map(patches_IPV), self.side).flatten(2).transpose(1, 2))


class AttentionPool(Connector):
    """Learned queries, one for each token, that attend to all patches.

    Args:
        d_in: Width of the encoder.
        d_out: Width of the decoder.
        grid: Patches a side.
        tokens: Tokens per picture, a square.
        heads: Attention heads, a divisor of ``d_in``.
    """

    def __init__(self, d_in: int, d_out: int, grid: int, *, tokens: int = 144, heads: int = 8) -> None:
        super().__init__(d_in, d_out, grid, tokens)
        if d_in % heads:
            raise UserError(
                f"{heads} heads over an encoder of width {d_in}; expected a divisor (model.connector.init_args.heads)"
            )
        self.heads = heads
        self.positions_1PV = nn.Parameter(torch.empty(1, grid**2, d_in))
        self.queries_NV = nn.Parameter(torch.empty(tokens, d_in))
        self.norm = nn.LayerNorm(d_in)
        self.q, self.k, self.v = (nn.Linear(d_in, d_in) for _ in range(3))
        self.readout = nn.Linear(d_in, d_out)
        follow_grid(self, "positions_1PV", grid)

    def forward(self, patches_IPV: Tensor) -> Tensor:
        """[I, P, V] -> [I, N, D]."""
        x_IPV = self.norm(patches_IPV + self.positions_1PV)
        queries_INV = self.q(self.queries_NV).expand(len(x_IPV), -1, -1)
        q, k, v = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (queries_INV, self.k(x_IPV), self.v(x_IPV))
        )
        return self.readout(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def pooled(map_ICSS: Tensor, side: int) -> Tensor:
    """Adaptive average pooling to ``side`` x ``side``, as products where a GPU has to give the same bits every time.

    There torch's own adds up its gradient in any order, and refuses to when ``trainer.deterministic`` is set.
    """
    if not (map_ICSS.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return adaptive_avg_pool2d(map_ICSS, side)
    return pooled_by_products(map_ICSS, side)


def pooled_by_products(map_ICSS: Tensor, side: int) -> Tensor:
    """The mean over each window is a product with the window's share, first along columns, then along rows."""
    grid = map_ICSS.shape[-1]
    at, cells = torch.arange(grid, device=map_ICSS.device), torch.arange(side, device=map_ICSS.device).unsqueeze(1)
    inside = (at >= cells * grid // side) & (at < -(-(cells + 1) * grid // side))  # windows overlap where they must
    share_NS = inside / inside.sum(1, keepdim=True)
    with torch.autocast(map_ICSS.device.type, enabled=False):
        return (share_NS @ map_ICSS.float() @ share_NS.T).to(map_ICSS.dtype)


def _blocks(depth: int, d_in: int, d_out: int) -> RegStage:
    return RegStage(depth, d_in, d_out, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
