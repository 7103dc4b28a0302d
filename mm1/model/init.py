"""All random initialisation in one place. A parameter's value depends on the seed and its own name and on nothing else.

So models that share a parameter share its first value: an MoE starts from its dense twin's attention, and a change
of connector leaves the decoder as it was. Values differ between kinds of device.
"""

from __future__ import annotations

import re
from zlib import crc32

import torch
from torch import Tensor, nn

STD = 0.02
RESIDUAL = re.compile(r"decoder\.layers\.\d+\.(attention\.o\.weight|ffn\.down\.weight|ffn\.experts\.down)")
ZERO = re.compile(r"(.*\.)?(in_proj_)?bias")
LAYER_SCALE = re.compile(r".*\.gamma")
NORMS = (nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def init_parameters(model: nn.Module, seed: int, layers: int) -> None:
    """Fill every parameter of ``model``; ``layers`` is the depth of the decoder.

    ==============================  =========================================
    weight of a norm                1
    bias                            0
    layer scale (DINOv2, CaiT)      1e-5
    outputs onto the residual       normal, 0.02 / sqrt(2 layers)   (GPT-2)
    all others                      normal, 0.02
    ==============================  =========================================

    0.02 also for embeddings, tied or not, and for the convolutions: larger ones bring denormal gradients, which a CPU
    multiplies many times slower.
    """
    for path, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if ZERO.fullmatch(full):
                parameter.zero_()
            elif isinstance(owner, NORMS):
                parameter.fill_(1.0)
            elif LAYER_SCALE.fullmatch(full):
                parameter.fill_(1e-5)
            else:
                std = STD / (2 * layers) ** 0.5 if RESIDUAL.fullmatch(full) else STD
                # 32 bits, because a CPU's generator ignores any above
                _normal(parameter, std, crc32(f"{seed} {full}".encode()))


def _normal(parameter: Tensor, std: float, seed: int) -> None:
    parameter.normal_(std=std, generator=torch.Generator(parameter.device).manual_seed(seed))
