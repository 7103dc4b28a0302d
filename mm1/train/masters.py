"""AdamW (Loshchilov and Hutter 2019) for weights that are computed with in bfloat16, in one pass over memory.

A weight in bfloat16 has 8 bits: a step of a thousandth of it is lost. So the optimizer keeps a copy in fp32, its
master, and what the model computes with is that rounded (Micikevicius et al. 2018, section 3.1). What clips gradients
and what judges a step leave their answers on the device (``scale``, ``skip``), so that no host waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mm1.model.moe.routers.base import Router

States = Literal["float32", "bfloat16"]
KEPT = ("exp_avg", "exp_avg_sq", "master")


class MasterAdamW(torch.optim.Optimizer):
    """AdamW with masters of what is not fp32, and moments in either type.

    Args:
        groups: Parameters, each group with its ``lr`` and ``weight_decay``.
        lr: Rate of groups without one.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        states: Type of the moments.
        masters: Whether parameters below fp32 have masters; without them updates are rounded to the parameter's type.

    Attributes:
        scale: What gradients are multiplied by, fp32[]; one if None.
        skip: Whether the next step leaves everything as it is, bool[]; it does not if None.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        states: States = "float32",
        masters: bool = True,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.states, self.masters = states, masters
        self.scale: Tensor | None = None
        self.skip: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; ``scale`` and ``skip`` are forgotten with it."""
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, parameter in work:
            self._begin(parameter)
        if work:
            self._count(work[0][1])
            (self._on_device if _in_one_pass(work) else self._one_by_one)(work)
        self.scale = self.skip = None
        return found

    def _begin(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if KEPT[0] in state:
            return
        known = (other["step"] for other in self.state.values() if "step" in other)  # one that begins late counts along
        state["step"] = next(known, torch.zeros((), dtype=torch.float32, device=parameter.device))
        for name in KEPT[:2]:
            state[name] = torch.zeros_like(parameter, dtype=getattr(torch, self.states))
        if self.masters and parameter.dtype != torch.float32:
            state["master"] = parameter.detach().float()

    def _count(self, first: Tensor) -> None:
        """All count the same steps, so one tensor counts for all."""
        step = self.state[first]["step"]
        step += 1 if self.skip is None else 1 - self.skip.to(step.dtype)
        for state in self.state.values():
            state["step"] = step

    def _one_by_one(self, work: list[tuple[dict[str, Any], Tensor]]) -> None:
        """In torch's operators, for every device."""
        if self.skip is not None and bool(self.skip):
            return
        for group, parameter in work:
            state, (beta1, beta2) = self.state[parameter], group["betas"]
            weight = _local(state.get("master", parameter))
            assert parameter.grad is not None
            grad, step = _local(parameter.grad).float(), float(state["step"])
            grad = grad if self.scale is None else grad * self.scale
            first, second = (_local(state[name]) for name in KEPT[:2])
            mean, square = first.float().lerp_(grad, 1 - beta1), second.float().mul_(beta2)
            square.addcmul_(grad, grad, value=1 - beta2)
            first.copy_(mean)
            second.copy_(square)
            below = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
            new = weight.float() * (1 - group["lr"] * group["weight_decay"])
            new.addcdiv_(mean, below, value=-group["lr"] / (1 - beta1**step))
            weight.copy_(new)
            if "master" in state:
                _local(parameter).copy_(new)

    def _on_device(self, work: list[tuple[dict[str, Any], Tensor]]) -> None:
        from mm1.train.masters_triton import update

        kinds: dict[Any, list[tuple[dict[str, Any], Tensor]]] = {}
        for group, parameter in work:
            assert parameter.grad is not None
            kind = (
                parameter.dtype,
                parameter.grad.dtype,
                "master" in self.state[parameter],
                group["betas"],
                group["eps"],
            )
            kinds.setdefault(kind, []).append((group, parameter))
        for (*_, betas, eps), alike in kinds.items():
            states = [self.state[parameter] for _, parameter in alike]
            update(
                [_local(parameter) for _, parameter in alike],
                [_local(parameter.grad) for _, parameter in alike],  # type: ignore[arg-type]
                [_local(state["exp_avg"]) for state in states],
                [_local(state["exp_avg_sq"]) for state in states],
                [_local(state["master"]) for state in states] if "master" in states[0] else None,
                rates=[(group["lr"], group["weight_decay"]) for group, _ in alike],
                step=states[0]["step"],
                betas=betas,
                eps=eps,
                scale=self.scale,
                skip=self.skip,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but moments and masters keep the types of this optimizer and not those of the weights."""
        super().load_state_dict(state_dict)
        ids = (id for group in state_dict["param_groups"] for id in group["params"])
        for id, parameter in zip(ids, self._parameters(), strict=True):
            saved = state_dict["state"].get(id, {})
            if not saved:
                continue
            state = self.state[parameter]
            # beside the parameter, where a verdict is as well; torch and Lightning leave it where it was read
            state["step"] = torch.as_tensor(saved["step"]).to(parameter.device, torch.float32, copy=True)
            for name in KEPT[:2]:
                state[name] = saved[name].to(parameter.device, getattr(torch, self.states), copy=True)
            state.pop("master", None)
            if self.masters and parameter.dtype != torch.float32:
                state["master"] = saved.get("master", parameter.detach()).to(parameter.device, torch.float32, copy=True)

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])


def lower(model: nn.Module) -> None:
    """Bring a model's weights to bfloat16 in place, all but those of routers, whose small differences decide.

    Switch, section 2.4. The mean and deviation of pictures are buffers and stay: 8 bits would shift every picture.
    """
    routers = {id(p) for module in model.modules() if isinstance(module, Router) for p in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in routers:
            parameter.data = parameter.data.bfloat16()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _in_one_pass(work: list[tuple[dict[str, Any], Tensor]]) -> bool:
    parameter = work[0][1]
    if parameter.device.type != "cuda" or torch.version.hip is not None:
        return False
    tensors = [_local(t) for _, p in work for t in (p, p.grad) if t is not None]
    return all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in tensors)
