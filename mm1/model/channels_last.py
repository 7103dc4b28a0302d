"""timm's RegNet stage with channels last: on a GPU a C-Abstractor then is products and additions.

A 1x1 convolution is a matrix product, a depth-wise 3x3 one nine shifted additions that the compiler makes one kernel
of, and a norm over channels reads what stands side by side. The parameters are those of timm's ``RegStage``.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.regnet import Bottleneck, RegStage
from torch import Tensor
from torch.nn.functional import layer_norm, linear, pad


def run_stage(stage: RegStage, x_IHWC: Tensor) -> Tensor:
    """What ``stage`` makes of a map, channels last in and out."""
    for block in stage.children():
        assert isinstance(block, Bottleneck)
        x_IHWC = _block(block, x_IHWC)
    return x_IHWC


def _block(block: Bottleneck, x_IHWC: Tensor) -> Tensor:
    y_IHWC = _convolve(block.conv2, _convolve(block.conv1, x_IHWC))
    y_IHWC = _convolve(block.conv3, _excite(block.se, y_IHWC))
    shortcut = x_IHWC if isinstance(block.downsample, torch.nn.Identity) else _convolve(block.downsample, x_IHWC)
    return block.act3(y_IHWC + shortcut)


def _convolve(part: Any, x_IHWC: Tensor) -> Tensor:
    """Convolution, norm, activation."""
    weight, norm = part.conv.weight, part.bn
    if weight.shape[-1] == 1:
        x_IHWC = linear(x_IHWC, weight.flatten(1))
    else:
        x_IHWC = _depthwise(x_IHWC, weight)
    return norm.act(layer_norm(x_IHWC, norm.normalized_shape, norm.weight, norm.bias, norm.eps))


def _depthwise(x_IHWC: Tensor, weight_C133: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x_IHWC.device.type):  # as it would have brought a convolution to a lower type
        x_IHWC = x_IHWC.to(torch.get_autocast_dtype(x_IHWC.device.type))
    height, width = x_IHWC.shape[1:3]
    around = pad(x_IHWC, (0, 0, 1, 1, 1, 1))
    places = ((down, right) for down in range(3) for right in range(3))
    parts = (
        around[:, down : down + height, right : right + width] * weight_C133[:, 0, down, right]
        for down, right in places
    )
    return sum(parts, start=torch.zeros((), device=x_IHWC.device)).to(x_IHWC.dtype)


def _excite(part: Any, x_IHWC: Tensor) -> Tensor:
    """Squeeze and excitation."""
    y_IC = part.act(linear(x_IHWC.mean((1, 2)), part.fc1.weight.flatten(1), part.fc1.bias))
    gate_IC = part.gate(linear(y_IC, part.fc2.weight.flatten(1), part.fc2.bias))
    return x_IHWC * gate_IC[:, None, None]
