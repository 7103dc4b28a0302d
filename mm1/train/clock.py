"""Where the time of a step goes: encoder, connector, decoder, loss, optimizer, forwards and backwards together.

Marks are set where parts begin and end, by hooks from outside the model; a GPU notes the time of each itself, so
nothing is waited for. Parts run one after another on one stream, so that they add up to the step. What ranks send each
other hides within them.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mm1.model.mm1 import MM1

PARTS = ("encoder", "connector", "decoder", "loss", "optimizer")


class Clock:
    """Times the steps it is told to.

    Args:
        model: Whose parts; not compiled as a whole, though its parts may be.
        device: Where it computes.
    """

    def __init__(self, model: MM1, device: torch.device) -> None:
        self.model, self.device = model, device
        self.marks: list[tuple[str, Any]] = []
        self.handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Time from here."""
        self.forget()
        self.marks = [("", self._now())]
        vision, decoder = self.model.vision, self.model.decoder
        # the embedding is looked up when the connector is done; a hook of a compiled part would be compiled with it
        self.handles = [
            vision.register_forward_hook(lambda module, args, patches: self._ends("encoder", patches, "connector")),
            decoder.embedding.register_forward_pre_hook(lambda module, args: self._ends("connector")),
            decoder.register_forward_pre_hook(lambda module, args: self._ends("connector", args[0], "decoder")),
            decoder.register_forward_hook(lambda module, args, out: self._ends("decoder", out.hidden_BTD, "loss")),
        ]

    def mark(self, part: str) -> None:
        """What was since the last mark was ``part``; nothing if no step is timed."""
        if self.marks:
            self.marks.append((part, self._now()))

    def stop(self) -> dict[str, float]:
        """Seconds of each part since :meth:`start`, and none if it was not called; waits for the device."""
        marks = self.marks
        self.forget()
        if not marks:
            return {}
        if self.device.type == "cuda":
            marks[-1][1].synchronize()
        found = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in pairwise(marks):
            found[part] += before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
        return found

    def forget(self) -> None:
        """Leave the model as it was before :meth:`start`, without waiting for the device."""
        for handle in self.handles:
            handle.remove()
        self.marks, self.handles = [], []

    def _ends(self, part: str, output: Tensor | None = None, following: str | None = None) -> None:
        """``part`` ends forwards with ``output``; when that has its gradient, ``following`` ends backwards."""
        self.mark(part)
        if output is not None and following is not None and output.requires_grad:
            output.register_hook(lambda gradient: self.mark(following))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
