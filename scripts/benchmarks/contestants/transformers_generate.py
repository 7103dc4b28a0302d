"""transformers' ``generate`` on our weights: its CLIP tower and its Llama, with our connector between them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants.assembled import Assembled, Size
from mm1.batch import IMAGE
from mm1.infer.features import Asked
from mm1.interop.towers.clip import NAMES
from mm1.model.mm1 import MM1


class TransformersGenerate:
    """What people call today, in the type that our model has.

    Args:
        model: Ours, whose weights are copied.
        size: Of what.
        new: Tokens of an answer, no fewer and no more.
    """

    def __init__(self, model: MM1, size: Size, new: int) -> None:
        weight = model.decoder.norm.weight
        torch.set_default_dtype(weight.dtype)
        try:
            with weight.device:
                theirs = Assembled(size, model.decoder.vocabulary, checkpointing=False).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        self.vision, self.language, self.new = theirs.vision, theirs.language, new
        self.vision.load_state_dict(clip_weights(self.vision, model))
        self.language.load_state_dict(llama_weights(model))
        for module in self.language.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = model.decoder.norm.eps
        self.connector = copy.deepcopy(model.connector)
        self.mean_C11, self.std_C11 = model.mean_C11.float(), model.std_C11.float()

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Asked], images_ICHW: Tensor) -> list[list[int]]:
        """Ids of the answers to prompts, all in one batch, their pictures prepared and on the device, uint8."""
        dtype, device = self.language.lm_head.weight.dtype, images_ICHW.device
        longest = max(len(asked) for asked in prompts)
        tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        seen_BT = torch.zeros_like(tokens_BT)
        for row, asked in enumerate(prompts):
            tokens_BT[row, -len(asked) :] = asked.tokens_T
            seen_BT[row, -len(asked) :] = 1
        tokens_BT, seen_BT = tokens_BT.to(device), seen_BT.to(device)
        pixels = ((images_ICHW.float() / 255 - self.mean_C11) / self.std_C11).to(dtype)
        patches_IPV = self.vision(pixel_values=pixels).last_hidden_state[:, 1:]
        tower = getattr(self.vision, "vision_model", self.vision)
        features_IND = self.connector(tower.post_layernorm(patches_IPV))
        x_BTD = self.language.get_input_embeddings()(tokens_BT.clamp(min=0))
        x_BTD = x_BTD.masked_scatter((tokens_BT == IMAGE)[..., None], features_IND.to(dtype))
        found: Any = self.language.generate(
            inputs_embeds=x_BTD,
            attention_mask=seen_BT,
            max_new_tokens=self.new,
            min_new_tokens=self.new,
            do_sample=False,
            pad_token_id=0,
        )
        ids: list[list[int]] = found.tolist()
        return ids


def clip_weights(vision: nn.Module, model: MM1) -> dict[str, Tensor]:
    """Our tower's tensors by the names of transformers' tower."""
    ours = model.vision.state_dict()
    found = {}
    for name, theirs in vision.state_dict().items():
        matches = ((re.fullmatch(pattern, name), place) for pattern, place in NAMES.items())
        place = next((match.expand(place) for match, place in matches if match), None)
        if place is None:  # a buffer that counts positions
            found[name] = theirs
            continue
        whole, _, piece = place.partition("#")
        value = ours[whole].chunk(3)[int(piece)] if piece else ours[whole]
        found[name] = value.reshape(theirs.shape)
    return found


def llama_weights(model: MM1) -> dict[str, Tensor]:
    """Our decoder's tensors by the names of transformers' Llama."""
    decoder = model.decoder
    found = {"model.embed_tokens.weight": decoder.embedding.weight, "model.norm.weight": decoder.norm.weight}
    found["lm_head.weight"] = decoder.head_VD
    for index, layer in enumerate(decoder.layers):
        at, parts = f"model.layers.{index}.", dict(layer.named_parameters())
        for name in "qkvo":
            found[f"{at}self_attn.{name}_proj.weight"] = parts[f"attention.{name}.weight"]
        gate, up = parts["ffn.gate_up.weight"].chunk(2)
        found |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
        found[f"{at}mlp.down_proj.weight"] = parts["ffn.down.weight"]
        found[f"{at}input_layernorm.weight"] = parts["attention_norm.weight"]
        found[f"{at}post_attention_layernorm.weight"] = parts["ffn_norm.weight"]
    return found
