"""AdamW whose moments take 8 bits a number (Dettmers et al. 2022, arXiv 2110.02861, sections 2.1 and 2.2), by torchao.

Rounding, its map of 256 values and the update are torchao's, to the bit. What is ours is which numbers share a scale:
a stretch of one row, never of two, so that a tensor that ranks share, in whatever way, has the same scales as a whole
one, and checkpoints hold plain tensors that any number of ranks reads without torchao.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mm1.errors import UserError
from mm1.train.exchange import local
from mm1.train.float8 import importing
from mm1.train.optim import Scheduled, check_moments
from mm1.train.parallel import placed

BLOCK, SMALLEST, FEW = 256, 64, 4096  # numbers of a scale at most and at least; of a tensor that is worth it (torchao)
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # and whether they have a sign


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(Scheduled):
    """AdamW with moments in 8 bits, linear warm-up, cosine to a final share of the peak; the numbers are AdamW's.

    Two moments take 2.03 bytes a parameter in place of 8. Vectors, tensors of fewer than 4096 numbers and rows that no
    divisor from 64 to 256 cuts keep theirs in fp32.

    Args:
        lr: Peak rate, or ``law`` for what the law gives for this decoder.
        weight_decay: Decoupled decay; never on vectors (norms, biases), position tables and class tokens.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        warmup_steps: Steps of linear warm-up.
        final_share: Rate at the last step as a share of the peak.
        parts: Rules by part (``vision``, ``connector``, ``decoder``) or by pattern of parameter names
            (``vision.*.bias``); where several match a parameter, the last one holds.
        law_file: YAML with ``slope`` and ``intercept`` of another law, as ``mm1-study lr-law`` writes it.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def made(self, groups: list[dict[str, Any]], peak: float) -> torch.optim.Optimizer:
        """Ours, around torchao's update.

        Raises:
            UserError: A number that AdamW cannot work with, torchao is missing, or weights below fp32.
        """
        check_moments(self.betas, self.eps)
        low = (torch.bfloat16, torch.float16)
        if any(parameter.dtype in low for group in groups for parameter in group["params"]):
            raise UserError(
                "model.optimizer is AdamW8bit, which keeps no masters, so that weights in bfloat16 would round its "
                "steps away; expected model.weights float32 beside it (and trainer.precision bf16-mixed), which takes "
                "as much memory as bfloat16 with masters would"
            )
        return InBlocks(groups, lr=peak, betas=self.betas, eps=self.eps)


class InBlocks(torch.optim.Optimizer):
    """AdamW with codes and scales for moments, of every rank its part of them.

    Args:
        groups: Parameters, each group with its ``lr`` and ``weight_decay``.
        lr: Rate of groups without one.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.

    Raises:
        UserError: torchao is missing.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        _torchao()
        # a checkpoint says by its block that moments are codes, so that no other optimizer takes them for numbers
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "block": BLOCK})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; on a GPU torch.compile makes a kernel for each shape in the first one."""
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        with torch._dynamo.utils.disable_cache_limit():  # shapes are as many as there are
            for group in self.param_groups:
                rate = torch.tensor(group["lr"], dtype=torch.float32)  # a number would be compiled in
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group, rate)
        return found

    def _update(self, parameter: Tensor, group: dict[str, Any], rate: Tensor) -> None:
        state, here = self.state[parameter], local(parameter.detach())
        if not state:
            state.update(_begun(parameter))
        state["step"] += 1
        if here.numel() == 0:  # the last ranks may have no part
            return
        assert parameter.grad is not None
        _, plain, compiled = _torchao()
        moments = [_moment(state, name) for name in MOMENTS]
        settings = (*group["betas"], group["weight_decay"], group["eps"], True, False)
        update = compiled if here.device.type == "cuda" else plain
        update(here, local(parameter.grad).contiguous(), state["step"], *moments, None, rate, *settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but codes stay codes; where ranks now cut rows inside blocks they become numbers."""
        super().load_state_dict({**state_dict, "state": {}})  # which would make fp32 of all codes at once
        ids = (id for group in state_dict["param_groups"] for id in group["params"])
        for id, parameter in zip(ids, (p for group in self.param_groups for p in group["params"]), strict=True):
            if saved := state_dict["state"].get(id):
                self.state[parameter] = _loaded(parameter, saved)


def block(parameter: Tensor) -> int | None:
    """Numbers that share a scale, or None where moments stay in fp32; the same on all ranks.

    Where ranks cut rows, a block must end at every cut.
    """
    row = parameter.shape[-1] if parameter.ndim > 1 and parameter.numel() >= FEW else 1
    size = next((size for size in range(BLOCK, SMALLEST - 1, -1) if row % size == 0), None)
    ranks = 1
    if isinstance(parameter, DTensor):
        last = parameter.ndim - 1
        cuts = [i for i, placement in enumerate(parameter.placements) if getattr(placement, "dim", None) == last]
        ranks = math.prod(parameter.device_mesh.size(axis) for axis in cuts)
    return size if size is not None and row % (size * ranks) == 0 else None


def _begun(parameter: Tensor) -> dict[str, Tensor]:
    """Moments of zero, placed as the parameter is."""
    size = block(parameter)
    state = {"step": torch.zeros((), device="cpu")}
    for name in MOMENTS:
        state[name] = torch.zeros_like(parameter, dtype=torch.float32 if size is None else torch.uint8)
        if size is not None:
            shape = (*parameter.shape[:-1], parameter.shape[-1] // size)
            state[_scaled(name)] = placed(torch.zeros(shape, device=parameter.device), parameter)
    return state


def _loaded(parameter: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
    """A rank's part of saved moments, whole or cut; scales are whole."""
    state, device = _begun(parameter), parameter.device
    state["step"].copy_(torch.as_tensor(saved["step"]))
    for name, signed in MOMENTS.items():
        scale, ours = saved.get(_scaled(name)), state.get(_scaled(name))
        value = local(placed(saved[name], parameter)).to(device)
        if scale is not None and ours is not None:
            local(ours).copy_(local(placed(scale, parameter)))
        elif scale is not None:
            each = scale.repeat_interleave(parameter.shape[-1] // scale.shape[-1], -1)
            value = _map(signed, device)[value.int()] * local(placed(each, parameter)).to(device)
        elif ours is not None and value.numel():
            _moment(state, name).copy_(value)
            continue
        local(state[name]).copy_(value)
    return state


def _moment(state: dict[str, Tensor], name: str) -> Tensor:
    """What torchao reads and writes, on the memory of ``state``."""
    here, scale = local(state[name]), state.get(_scaled(name))
    if scale is None:
        return here
    wraps, *_ = _torchao()
    signed = MOMENTS[name]
    return wraps(here, local(scale).view(-1), _map(signed, here.device), signed, torch.float32)


def _scaled(name: str) -> str:
    return f"{name}_scale"


@cache
def _map(signed: bool, device: torch.device) -> Tensor:
    wraps, *_ = _torchao()
    return wraps.zeros((BLOCK,), signed, BLOCK, device).qmap


@cache
def _torchao() -> tuple[Any, Any, Any]:
    """Its tensor of codes and scales, its update, and that compiled."""
    with importing("model.optimizer AdamW8bit"):
        from torchao.optim.adam import OptimState8bit, single_param_adam
    return OptimState8bit, single_param_adam, torch.compile(single_param_adam, fullgraph=True, dynamic=False)
