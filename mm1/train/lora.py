"""Low-rank adapters as the cheap way of instruction tuning (LoRA, arXiv 2106.09685), by the library peft.

Full tuning is MM1's and the default. With adapters the matrices that they stand beside stay as they are, only the
adapters are saved, and :mod:`mm1.model.adapters` adds them to the base whenever such a checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from mm1.errors import UserError, at_least
from mm1.model.mm1 import MM1


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters beside linear layers.

    Args:
        rank: Of each adapter.
        alpha: Its product counts alpha / rank times.
        dropout: Share of an adapter's inputs that training sets to zero.
        targets: Patterns of names of linear layers that get one; by default all in the decoder's layers. Stacked
            experts are no linear layers.
        also: Patterns of names of parameters that are trained as they are, and saved, such as ``connector.*``.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = ("decoder.layers.*",)
    also: Sequence[str] = ()

    def adapt(self, model: MM1, seed: int) -> None:
        """Put adapters into the model, which changes none of its outputs yet, and let nothing else learn.

        Args:
            model: The model, filled.
            seed: Decides the first weights of adapters.

        Raises:
            UserError: peft is missing, a pattern matches nothing, or a number no adapter can have.
        """
        at_least(1, {"model.lora.rank": self.rank})
        at_least(0, {"model.lora.dropout": self.dropout, "model.lora.alpha": self.alpha})
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        chosen = _matching(self.targets, layers, "targets", "linear layer, such as decoder.layers.*.attention.*")
        also = _matching(self.also, [name for name, _ in model.named_parameters()], "also", "parameter")
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("model.lora needs the package peft, which is not there; pip install 'mm1[lora]'") from None
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(chosen)  # type: ignore[arg-type]
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name or name.replace(".base_layer.", ".") in also)

    def record(self) -> dict[str, Any]:
        """What adding the adapters to their base needs to know."""
        return {"rank": self.rank, "alpha": self.alpha}


def _matching(patterns: Sequence[str], names: Sequence[str], setting: str, kind: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for pattern in patterns:
        some = [name for name in names if fnmatch(name, pattern)]
        if not some:
            raise UserError(
                f"model.lora.{setting} has {pattern!r}, which matches nothing; expected the name of a {kind}"
            )
        found |= dict.fromkeys(some)
    return found
