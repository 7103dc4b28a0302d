"""Adapters and the model that they were trained beside become one again (LoRA, arXiv 2106.09685, section 4.1).

    W + alpha / rank * B A          W [out, in] of the base, A [rank, in], B [out, rank]

Names are peft's: ``decoder.layers.0.attention.q.lora_A.default.weight`` is A of ``...attention.q.weight``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mm1.errors import UserError

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
SAMPLES = 64  # numbers of each tensor that tell one model from another


def merged(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the whole model.

    Args:
        base: Those of the model that was adapted.
        trained: Adapters, and what else was trained, in place of the base's.
        about: ``rank`` and ``alpha``.
    """
    weights = dict(base)
    for name, tensor in trained.items():
        if name.endswith(A):
            place = name.removesuffix(A)
            matrix = weights[f"{place}.weight"]
            product = trained[place + B].double() @ tensor.double()
            scaled = about["alpha"] / about["rank"] * product
            weights[f"{place}.weight"] = (matrix.double() + scaled).to(matrix.dtype)
        elif not name.endswith(B):
            weights[name.replace(".base_layer.", ".")] = tensor
    return weights


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Tells a model's weights from others without reading all of them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().flatten()
        some = tensor[:: max(1, tensor.numel() // SAMPLES)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weights[name].shape)}".encode() + some.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_base(about: Mapping[str, Any], base: Mapping[str, Tensor], origin: object) -> None:
    """Refuse another model than the one that was adapted.

    Raises:
        UserError: It has other weights.
    """
    if fingerprint(base) != about["fingerprint"]:
        raise UserError(
            f"{origin} holds adapters of {about['base']}, whose weights are others now; expected the model that they "
            f"were trained beside"
        )
