"""What people assemble today: transformers' CLIP tower and Llama with convolutions between, trained by a plain loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


@dataclass(frozen=True)
class Size:
    """Tower and language model, and what a step holds of each row.

    Args:
        width: Of the language model.
        layers: Likewise.
        heads: Likewise.
        ffn_width: Likewise.
        vision_width: Of the tower.
        vision_layers: Likewise.
        vision_heads: Likewise.
        image_px: Side of a picture.
        patch_px: Side of a patch.
        row_tokens: Positions of a row.
        images: Pictures of a row.
        side: Tokens a side of a picture.
    """

    width: int
    layers: int
    heads: int
    ffn_width: int
    vision_width: int = 1280
    vision_layers: int = 32
    vision_heads: int = 16
    image_px: int = 378
    patch_px: int = 14
    row_tokens: int = 4096
    images: int = 16
    side: int = 12


class Connector(nn.Module):
    """Bottlenecks of convolutions, pooling to ``side`` x ``side``, bottlenecks, two linear layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        inner = min(1024, size.vision_width)

        def bottleneck() -> nn.Module:
            middle = nn.Conv2d(inner, inner, 3, padding=1, groups=16)
            return nn.Sequential(nn.Conv2d(inner, inner, 1), nn.SiLU(), middle, nn.SiLU(), nn.Conv2d(inner, inner, 1))

        self.side = size.side
        self.first = nn.Conv2d(size.vision_width, inner, 1)
        self.before = nn.ModuleList(bottleneck() for _ in range(3))
        self.after = nn.ModuleList(bottleneck() for _ in range(3))
        self.last = nn.Sequential(nn.Linear(inner, size.width), nn.SiLU(), nn.Linear(size.width, size.width))

    def forward(self, patches_IPV: Tensor) -> Tensor:
        """[I, P, V] -> [I, N, D]."""
        grid = round(patches_IPV.shape[1] ** 0.5)
        x = self.first(patches_IPV.transpose(1, 2).unflatten(2, (grid, grid)))
        for block in self.before:
            x = x + block(x)
        x = adaptive_avg_pool2d(x, self.side)
        for block in self.after:
            x = x + block(x)
        return self.last(x.flatten(2).transpose(1, 2))


class Assembled(nn.Module):
    """Tower, connector, language model; pictures stand at the front of each row.

    Args:
        size: What of.
        vocabulary: Token ids.
        checkpointing: Recompute layers in the backward pass.
    """

    def __init__(self, size: Size, vocabulary: int, checkpointing: bool) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=size.vision_width,
                intermediate_size=4 * size.vision_width,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=size.vision_heads,
                image_size=size.image_px,
                patch_size=size.patch_px,
                hidden_act="quick_gelu",
                attn_implementation="sdpa",
            )
        )
        self.language = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=size.width,
                intermediate_size=size.ffn_width,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                num_key_value_heads=size.heads,
                vocab_size=vocabulary,
                max_position_embeddings=size.row_tokens,
                attn_implementation="sdpa",
            )
        )
        self.connector = Connector(size)
        if checkpointing:
            self.vision.gradient_checkpointing_enable()
            self.language.gradient_checkpointing_enable()

    def forward(self, tokens_BT: Tensor, images: Tensor) -> Tensor:
        """The mean cross-entropy of the text."""
        features = self.connector(self.vision(pixel_values=images).last_hidden_state[:, 1:])
        features = features.reshape(len(tokens_BT), -1, features.shape[-1])
        places = features.shape[1]
        x_BTD = self.language.get_input_embeddings()(tokens_BT)
        x_BTD = torch.cat([features.to(x_BTD.dtype), x_BTD[:, places:]], dim=1)
        labels = torch.cat([torch.full_like(tokens_BT[:, :places], -100), tokens_BT[:, places:]], dim=1)
        return self.language(inputs_embeds=x_BTD, labels=labels).loss
