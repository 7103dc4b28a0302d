"""All random initialisation in one place. A parameter's value depends on the seed and its own name and on nothing else.

So models that share a parameter share its first value: an MoE starts from its dense twin's attention, and a change
of connector leaves the decoder as it was. Values differ between kinds of device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from zlib import crc32

import torch
from torch import Tensor, nn

from mm1.model.moe.experts import Experts
from mm1.model.moe.routers import Router, Switch

SMALL = 0.02
# what is within an MH-MoE (inner) ends at its merge layer, not at the residual
RESIDUAL = re.compile(
    r"decoder\.layers\.\d+\.(attention\.o\.weight|ffn\.((?!inner\.)\w+\.)*(down\.weight|experts\.down|merge\.weight))"
)
HEAD = re.compile(r".*\.ffn\.(\w+\.)*head\.weight")
ZERO = re.compile(r"(.*\.)?(in_proj_)?bias")
LAYER_SCALE = re.compile(r".*\.gamma")
NORMS = (nn.LayerNorm, nn.RMSNorm)
MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, Experts)
Whole = Callable[[Tensor], AbstractContextManager[Tensor]]


@torch.no_grad()
def init_parameters(model: nn.Module, seed: int, layers: int, whole: Whole = nullcontext) -> None:
    """Fill every parameter of ``model``; ``layers`` is the depth of the decoder.

    ``whole`` lends the tensor that is filled, where a model keeps only a part of a parameter here.

    ==============================  =========================================
    weight of a norm                1
    bias                            0
    layer scale (DINOv2, CaiT)      1e-5
    matrices and convolutions       normal, 1 / sqrt(inputs)        (LeCun)
    outputs onto the residual       normal, 1 / sqrt(2 layers inputs)   (GPT-2)
    embeddings, positions, queries  normal, 0.02
    head, router                    normal, 0.02
    router of Switch                normal, sqrt(0.1 / inputs)      (its small init)
    router of noisy top-k           0
    head layer of MH-MoE            normal, 1 / sqrt(2 inputs)  (its authors')
    ==============================  =========================================

    The usual 0.02 everywhere is 1 / sqrt(inputs) at a width of 2,500. In narrower models it leaves the branches of the
    image encoder all but silent, and the model stays blind for longer (configs/ablations/README.md). Embeddings stay
    small: larger ones bring denormal gradients, which a CPU multiplies many times slower. Head and router begin
    undecided; what in a router is no matrix (biases that choose, temperatures, thresholds) it fills itself.
    """
    for path, owner in model.named_modules():
        for name, place in owner.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if place.is_meta:  # its values come from elsewhere
                continue
            with whole(place) as parameter:
                if ZERO.fullmatch(full):
                    parameter.zero_()
                elif isinstance(owner, NORMS):
                    parameter.fill_(1.0)
                elif LAYER_SCALE.fullmatch(full):
                    parameter.fill_(1e-5)
                else:
                    matrix = isinstance(owner, MATRICES) and path != "decoder.head"
                    std = _inputs(owner, parameter) ** -0.5 if matrix else SMALL
                    std = (0.1 / _inputs(owner, parameter)) ** 0.5 if isinstance(owner, Switch) else std
                    std /= (2 * layers) ** 0.5 if RESIDUAL.fullmatch(full) else 1
                    std /= 2**0.5 if HEAD.fullmatch(full) else 1
                    # 32 bits, because a CPU's generator ignores any above
                    _normal(parameter, std, crc32(f"{seed} {full}".encode()))
        if isinstance(owner, Router):
            owner.reset()


def _inputs(owner: nn.Module, weight: Tensor) -> int:
    """Numbers that one output of this weight adds up."""
    return weight.shape[-1] if isinstance(owner, Experts) else weight[0].numel()


def _normal(parameter: Tensor, std: float, seed: int) -> None:
    parameter.normal_(std=std, generator=torch.Generator(parameter.device).manual_seed(seed))
