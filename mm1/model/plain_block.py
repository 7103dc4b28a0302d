"""open_clip's residual block, computed in one piece: the encoder costs more than the decoder of a 1.2B model.

The parameters and their names are open_clip's. Its own forward pass goes through ``nn.MultiheadAttention``, which
copies queries, keys and values apart before it attends; here they are read where the one projection left them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from mm1.model.add_norm import add_norm
from mm1.model.products import in_whole_waves
from mm1.model.recompute import NOTHING, PRODUCTS, Checkpointing, recomputed


class PlainBlock(ResidualAttentionBlock):
    """A block of a plain image tower, where every position sees every other; blocks become one by :func:`plain`.

    It takes the residual and what the block before would add to it, and gives the same on: the next norm adds it.

    Attributes:
        product: What multiplies by the matrix of queries, keys and values, which is no layer's; it can be replaced.
    """

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(linear)

    def forward(
        self, x_IPV: Tensor, branch_IPV: Tensor | None = None, selective: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Two of [I, P, V], of which the sum is the residual; ``selective`` as for a layer of the decoder."""
        return (recomputed(self._answer, PRODUCTS) if selective else self._answer)(x_IPV, branch_IPV)

    def _answer(self, x_IPV: Tensor, branch_IPV: Tensor | None) -> tuple[Tensor, Tensor]:
        x_IPV, normed_IPV = add_norm(x_IPV, branch_IPV, self.ln_1)
        x_IPV, normed_IPV = add_norm(x_IPV, self.ls_1(self._attend(normed_IPV)), self.ln_2)
        hidden_IPF = self.mlp.gelu(in_whole_waves(self.mlp.c_fc, normed_IPV))
        return x_IPV, self.ls_2(in_whole_waves(self.mlp.c_proj, hidden_IPF))

    def _attend(self, x_IPV: Tensor) -> Tensor:
        attention = self.attn
        qkv = self.product(x_IPV, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (t.transpose(1, 2) for t in qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(2))
        return attention.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def run_blocks(blocks: nn.ModuleList, x_IPV: Tensor, checkpointing: Checkpointing) -> Tensor:
    """Every block of a tower in turn, [I, P, V] -> [I, P, V].

    Args:
        blocks: Ours, or open_clip's of another kind, of which a compiler recomputes all where it is to be a part.
        x_IPV: What the first one reads.
        checkpointing: What the backward pass computes again instead of keeping it.
    """
    branch_IPV: Tensor | None = None
    again = checkpointing if torch.is_grad_enabled() else False
    for block in blocks:
        if isinstance(block, PlainBlock):
            run = recomputed(block, NOTHING) if again is True else block
            x_IPV, branch_IPV = run(x_IPV, branch_IPV, again == "selective")
        else:
            x_IPV = (recomputed(block, PRODUCTS if again == "selective" else NOTHING) if again else block)(x_IPV)
    return x_IPV if branch_IPV is None else x_IPV + branch_IPV


class PatchConv(nn.Conv2d):
    """The first layer as the matrix product that it is: patches do not overlap, which no convolution makes use of."""

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, V, grid, grid]."""
        if not images_ICHW.is_cuda:
            return super().forward(images_ICHW)
        return self.product(images_ICHW)

    def product(self, images_ICHW: Tensor) -> Tensor:
        """The same by one product; like a convolution it leaves out what is no whole patch at the lower right."""
        down, right = self.kernel_size
        whole = [side // size * size for side, size in zip(images_ICHW.shape[2:], self.kernel_size, strict=True)]
        cut_ICHW = images_ICHW[:, :, : whole[0], : whole[1]]
        tiles = cut_ICHW.unflatten(3, (-1, right)).unflatten(2, (-1, down))  # [I, 3, grid, down, grid, right]
        patches = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def plain(visual: VisionTransformer) -> None:
    """Make a tower's blocks and its first layer ours, in place; what is of another kind stays as it is."""
    first = visual.conv1
    if type(first) is nn.Conv2d and first.kernel_size == first.stride:
        first.__class__ = PatchConv
    for block in visual.transformer.resblocks:
        if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
            block.__class__ = PlainBlock
