"""Windows into routing while it is trained: the ``experts`` line of metrics.jsonl, and a word when routing collapses.

Sums stay on the device (:mod:`mm1.model.moe.stats`) and are added up from step to step; a line reads them all at once,
so that watching costs one copy of a few kilobytes every n steps, and tells of all steps since the line before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mm1.errors import at_least
from mm1.model.decoder import Decoder
from mm1.model.loss import LossSums
from mm1.model.moe.layer import MoE
from mm1.model.moe.stats import GAUGES
from mm1.runs import DEAD

log = logging.getLogger(__name__)

TOGETHER_EXPERTS = 32  # beyond so many experts the matrix of pairs would swell metrics.jsonl
DIGITS = 6


class RoutingWindow:
    """What routers did in the steps since it was last read.

    Args:
        layers: Indices of the sparse layers in the decoder.
        sources: Names of the sources, in the order of the batch.
    """

    def __init__(self, layers: Sequence[int], sources: Sequence[str]) -> None:
        self.layers, self.sources = list(layers), list(sources)
        self.steps, self.sums = 0, [torch.zeros(0)] * 3

    def add(self, step: LossSums) -> None:
        """Add the sums of one step; nothing is waited for."""
        parts = [step.load_LGE, step.gauges_LGN, step.together_LEE]
        if parts[0].shape[-1] > TOGETHER_EXPERTS:
            parts[2] = parts[2].new_zeros(0)
        parts = [part.double() for part in parts]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.steps else parts
        self.steps += 1

    def read(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The ``experts`` line as :mod:`mm1.runs` describes it, and start anew; nothing for a dense model.

        Args:
            over_ranks: Adds a tensor up over ranks; every rank must call it.
        """
        if not self.steps or not self.sums[0].numel():
            return {}
        flat = over_ranks(torch.cat([part.flatten() for part in self.sums])).cpu()
        read = flat.split([part.numel() for part in self.sums])
        load_LGE, gauges_LGN, together_LEE = (a.view_as(b).numpy() for a, b in zip(read, self.sums, strict=True))
        if not gauges_LGN[..., 0].any():
            return {}  # no tokens, since all that was read is damaged: the next line tells of these steps too
        line = self._line(load_LGE, gauges_LGN, together_LEE)
        steps, self.steps = self.steps, 0
        return {"steps": steps, "layers": self.layers, **line}

    def _line(self, load_LGE: np.ndarray, gauges_LGN: np.ndarray, together_LEE: np.ndarray) -> dict[str, Any]:
        line = _numbers(load_LGE.sum(1), gauges_LGN.sum(1))
        line["max_load"] = _rounded([max(load) * len(load) for load in line["load"]])
        line["dead"] = [sum(share * len(load) < DEAD for share in load) for load in line["load"]]
        for split, groups in self._groups().items():
            found = {name: _numbers(load_LGE[:, at].sum(1), gauges_LGN[:, at].sum(1)) for name, at in groups.items()}
            line[split] = {name: numbers for name, numbers in found.items() if numbers}
        if together_LEE.size and _pairs(together_LEE):
            tokens_L = gauges_LGN[..., 0].sum(1)
            line["together"] = _rounded(together_LEE / np.maximum(tokens_L, 1)[:, None, None])
        return line

    def _groups(self) -> dict[str, dict[str, slice]]:
        """Which of the groups (text and pictures of source 0, of source 1, ..) are of a modality, and of a source."""
        return {
            "modality": {"text": slice(0, None, 2), "image": slice(1, None, 2)},
            "source": {name: slice(2 * at, 2 * at + 2) for at, name in enumerate(self.sources)},
        }


def _numbers(load_LE: np.ndarray, gauges_LN: np.ndarray) -> dict[str, Any]:
    """Shares of the choices and means over tokens; nothing of a group that had no tokens."""
    tokens_L = gauges_LN[:, 0]
    if not tokens_L.all():
        return {}
    shares_LE = load_LE / np.maximum(load_LE.sum(1, keepdims=True), 1)
    means = {name: _rounded(gauges_LN[:, n] / tokens_L) for n, name in enumerate(GAUGES) if n}
    return {"load": _rounded(shares_LE), **means}


def _pairs(together_LEE: np.ndarray) -> bool:
    """Whether any token visited two experts."""
    return bool(together_LEE.sum() > np.trace(together_LEE, axis1=1, axis2=2).sum())


def _rounded(values: Any) -> Any:
    return np.round(np.asarray(values, float), DIGITS).tolist()


class WatchRouting(Callback):
    """Say so, once a layer, when few experts get most tokens or some get none, and what helps.

    Uneven load is normal in the first steps, so it must stay for a while.

    Args:
        max_load: Warn where the busiest expert gets more than so many times an even share.
        window_steps: For so many steps on end.
    """

    def __init__(self, max_load: float = 3.0, window_steps: int = 200) -> None:
        at_least(1, {"max_load": max_load, "window_steps": window_steps})
        self.max_load, self.window_steps = max_load, window_steps
        self.since: dict[int, int] = {}  # layer: the first step of the line from which on it is uneven
        self.warned: set[int] = set()

    def look(self, step: int, line: Mapping[str, Any], decoder: Decoder) -> None:
        """Look at an ``experts`` line that was just written.

        Args:
            step: Step of the line.
            line: Its content.
            decoder: Whose routers they are.
        """
        told = []
        for at, layer in enumerate(line["layers"]):
            load, dead, experts = line["max_load"][at], line["dead"][at], len(line["load"][at])
            if not (dead or load > self.max_load):
                self.since.pop(layer, None)
                continue
            since = self.since.setdefault(layer, step - line["steps"])
            if step - since >= self.window_steps and layer not in self.warned:
                self.warned.add(layer)
                told.append(f"layer {layer}: busiest expert {load:.1f} x its even share, {dead} of {experts} dead")
        if told:
            log.warning(
                "step %d: routing collapses, and has for %d steps (%s); %s",
                step,
                self.window_steps,
                "; ".join(told),
                _remedy(decoder.layers[line["layers"][0]].ffn),
            )


def _remedy(mixture: nn.Module) -> str:
    """What helps, by what is set now."""
    plain = next((module for module in mixture.modules() if isinstance(module, MoE)), None)
    if plain is None:
        return "see docs/moe.md for what balances this layer"
    if plain.balance_weight:
        first = f"raise balance_weight, which is {plain.balance_weight},"
    else:
        first = "set balance_weight to 0.01, it is 0,"
    second = "lower the decoder's rate" if plain.z_weight else "set z_weight to 0.001, it is 0"
    third = "" if plain.router.adapts else ", or take a router with a loss-free bias (docs/moe.md)"
    return f"{first} or {second} (model.model.decoder.init_args.moe){third}"
