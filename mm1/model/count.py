"""How big a model is and what it costs: parameters by what they are asked for, FLOPs by what a batch holds.

A learning rate needs the non-embedding parameters of the *dense twin* (MM1 trained both with the same one), a
comparison needs active parameters and FLOPs, a disk needs the total. FLOPs are 2 per multiply-add and those the model
needs: recomputation, padding and masked keys are not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mm1.batch import IGNORE, Batch
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import Mixture


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters.

    Args:
        total: Everything, encoder and all experts included.
        active: What one token and one picture meet: ``total`` without the experts that a token does not visit.
        non_embedding: The decoder without embedding and head, all experts included.
        active_non_embedding: The same with the visited experts only.
        dense_twin: The same with a dense layer of ``ffn_width`` in place of each MoE layer: N of the learning-rate law.
    """

    total: int
    active: int
    non_embedding: int
    active_non_embedding: int
    dense_twin: int


def parameters(model: MM1) -> Counts:
    """Count, on any device, ``meta`` included."""
    sparse = [layer.ffn for layer in model.decoder.layers if isinstance(layer.ffn, Mixture)]
    non_embedding = _numel(model.decoder.layers) + _numel(model.decoder.norm)
    idle = sum(moe.idle for moe in sparse)
    dense = 3 * model.decoder.width * model.decoder.ffn_width
    return Counts(
        total=_numel(model),
        active=_numel(model) - idle,
        non_embedding=non_embedding,
        active_non_embedding=non_embedding - idle,
        dense_twin=non_embedding + sum(dense - _numel(moe) for moe in sparse),
    )


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of a model by their cause.

    Args:
        position: Per decoder position, in its matrices.
        key: Per decoder position and key that it sees, itself included, in one layer.
        windows_L: How many keys a position sees at most in each layer, None where it sees all before it.
        target: Per target, in the head.
        vision: Per picture, in the encoder.
        connector: Per picture, in the connector.
        vision_learns: Whether the encoder is trained, so that it has a backward pass.
    """

    position: float
    key: float
    windows_L: tuple[int | None, ...]
    target: float
    vision: float
    connector: float
    vision_learns: bool

    def forward(self, batch: Batch, encoder: bool = True) -> Tensor:
        """Of one forward pass, float64[]; ``encoder`` false leaves the image encoder out, which twins share."""
        return self._decoder(batch) + len(batch.images_ICHW) * (self.connector + encoder * self.vision)

    def training(self, batch: Batch, encoder: bool = True) -> Tensor:
        """Of forward and backward, three times the forward pass; a frozen encoder runs forward only."""
        vision = (3 if self.vision_learns else 1) * self.vision if encoder else 0.0
        return 3 * self._decoder(batch) + len(batch.images_ICHW) * (3 * self.connector + vision)

    def _decoder(self, batch: Batch) -> Tensor:
        valid_BT = batch.segments_BT > 0
        keys = self._keys((batch.positions_BT + 1) * valid_BT)
        targets = (batch.targets_BT != IGNORE).sum().double()
        return valid_BT.sum().double() * self.position + keys * self.key + targets * self.target

    def _keys(self, before_BT: Tensor) -> Tensor:
        """Keys that are seen in all layers, float64[], where ``before_BT`` positions could be, themselves included."""
        seen = [
            layers * (before_BT if window is None else before_BT.clamp(max=window)).sum()
            for window, layers in Counter(self.windows_L).items()
        ]
        return torch.stack(seen).sum().double()


def flops(model: MM1) -> Flops:
    """What ``model`` costs; computed once, applied to any number of batches."""
    decoder, vision = model.decoder, model.vision
    matrices = sum(_matrices(part) for layer in decoder.layers for part in (layer.attention, layer.ffn))
    image = torch.empty(1, 3, vision.image_px, vision.image_px, device="meta", dtype=model.image_dtype)
    patches = torch.empty(1, vision.grid**2, vision.width, device="meta", dtype=model.image_dtype)
    return Flops(
        position=2.0 * matrices,
        key=4.0 * decoder.heads * decoder.head_width,
        windows_L=tuple(decoder.windows_L),
        target=2.0 * decoder.vocabulary * decoder.width,
        vision=_measured(vision, image),
        connector=_measured(model.connector, patches),
        vision_learns=any(parameter.requires_grad for parameter in vision.parameters()),
    )


def _matrices(module: Any) -> int:
    """Elements of the matrices that a position is multiplied by."""
    if isinstance(module, Mixture):
        return module.multiplied
    return sum(inner.weight.numel() for inner in module.modules() if isinstance(inner, nn.Linear))


def _measured(module: nn.Module, x: Tensor) -> float:
    """Forward FLOPs of any module, run on shapes alone: no memory, no weights."""
    weights = {name: torch.empty_like(value, device="meta") for name, value in module.state_dict().items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(module, weights, (x,))
    return float(counter.get_total_flops())


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
