"""Adafactor, by which MM1 was instruction-tuned (MM1, section 5; Shazeer and Stern 2018, arXiv 1804.04235).

The second moment of a matrix is kept as the means of its rows and columns, and nothing else is kept: 3 billion
parameters need some megabytes beside the weights, where AdamW keeps two numbers for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import Adafactor as Absolute
from torch.distributed.tensor import DTensor

from mm1.errors import UserError, at_least
from mm1.train.optim import Scheduled


@dataclass(frozen=True, kw_only=True)
class Adafactor(Scheduled):
    """Adafactor without a first moment, linear warm-up, cosine to a final share of the peak.

    Rate, cosine and optimizer are MM1's; that its cosine ends at 0 is unconfirmed, and of what its rate is a share is
    unpublished. Taken absolutely it moves a weight about as far as AdamW at the same rate does.

    Args:
        lr: Peak rate, or ``law`` for what the law gives for this decoder.
        weight_decay: Decoupled decay; never on vectors (norms, biases), position tables and class tokens.
        decay_rate: The mean of squares at step t gives 1 - t ** decay_rate to what was before.
        clip_rms: What the root mean square of a tensor's update, before the rate, is brought down to.
        relative: Whether rates count in units of each tensor's own root mean square, as for T5.
        warmup_steps: Steps of linear warm-up.
        final_share: Rate at the last step as a share of the peak.
        parts: Rules by part (``vision``, ``connector``, ``decoder``) or by pattern of parameter names
            (``vision.*.bias``); where several match a parameter, the last one holds.
        law_file: YAML with ``slope`` and ``intercept`` of another law, as ``mm1-study lr-law`` writes it.
    """

    lr: float | Literal["law"] = 1e-5
    weight_decay: float = 0.0
    final_share: float = 0.0
    decay_rate: float = -0.8
    clip_rms: float = 1.0
    relative: bool = False

    def made(self, groups: list[dict[str, Any]], peak: float) -> torch.optim.Optimizer:
        """timm's, and torch's where rates are relative.

        Raises:
            UserError: A number that Adafactor cannot work with, or weights that are shared by ranks or not in fp32.
        """
        parameters = [parameter for group in groups for parameter in group["params"]]
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise UserError(
                "model.optimizer is Adafactor, whose means of rows and columns are of whole matrices, and "
                "trainer.strategy shares them among ranks; expected AdamW there, or trainer.strategy auto or ddp"
            )
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in parameters):
            raise UserError(
                "model.optimizer is Adafactor, which keeps no masters, so that weights in bfloat16 would round its "
                "steps away; expected model.weights float32 beside it (and trainer.precision bf16-mixed)"
            )
        at_least(1e-9, {"model.optimizer.clip_rms": self.clip_rms})
        if not -1 <= self.decay_rate < 0:
            raise UserError(f"model.optimizer.decay_rate is {self.decay_rate}; expected a number from -1 to below 0")
        if self.relative:
            return torch.optim.Adafactor(groups, lr=peak, beta2_decay=self.decay_rate, d=self.clip_rms)
        return _ByExpert(groups, lr=peak, decay_rate=self.decay_rate, clip_threshold=self.clip_rms)


class _ByExpert(Absolute):
    """timm's, with means of their own for each expert of a sparse layer, whose matrices are stacked [E, .., ..]."""

    @staticmethod
    def _get_options(
        param_group: dict[str, Any], param_shape: Sequence[int], min_size_to_factor: int = 16
    ) -> tuple[tuple[int, int] | None, bool]:
        if len(param_shape) == 3 and min(param_shape[-2:]) > min_size_to_factor:
            return (1, 2), False
        return Absolute._get_options(param_group, param_shape, min_size_to_factor)
