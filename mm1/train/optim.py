"""Optimizers with a warm-up and a cosine, settable part by part, and the rate that MM1's law gives (MM1, section 4).

    eta(N) = exp(-0.4214 ln N - 0.5535)        N: non-embedding parameters of the decoder, for an MoE of its dense twin

MM1 states its decay as 0.1 eta; its framework does not multiply decay by the rate, torch does, so ``weight_decay=0.1``
is the same at every size.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mm1.errors import UserError, at_least
from mm1.model.count import parameters
from mm1.model.mm1 import MM1
from mm1.train.masters import MasterAdamW, States

log = logging.getLogger(__name__)

SLOPE, INTERCEPT = -0.4214, -0.5535
# for all groups, by whichever optimizer
SET_ALIKE = ("betas", "eps", "decay_rate", "beta1", "clip_threshold", "d", "block")


@dataclass(frozen=True, kw_only=True)
class PartRule:
    """What is different for some parameters.

    Args:
        lr: Peak rate of their own; None keeps the optimizer's.
        lr_scale: Factor on the peak rate.
        weight_decay: Decay of their own; None keeps the optimizer's.
        warmup_steps: Warm-up of their own; None keeps the optimizer's.
        start_step: Step before which they stand still; warm-up and cosine begin there.
        frozen: Whether they are not trained at all.
    """

    lr: float | None = None
    lr_scale: float = 1.0
    weight_decay: float | None = None
    warmup_steps: int | None = None
    start_step: int = 0
    frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class Scheduled(ABC):
    """What optimizers share: parameters in groups by rule, a linear warm-up, a cosine to a final share of the peak.

    Args:
        lr: Peak rate, or ``law`` for what the law gives for this decoder.
        weight_decay: Decoupled decay, multiplied by the rate; never on vectors, position tables and class tokens.
        warmup_steps: Steps of linear warm-up.
        final_share: Rate at the last step as a share of the peak.
        parts: Rules by part (``vision``, ``connector``, ``decoder``) or by pattern of parameter names
            (``vision.*.bias``); where several match a parameter, the last one holds.
        law_file: YAML with ``slope`` and ``intercept`` of another law, as ``mm1-study lr-law`` writes it.
    """

    lr: float | Literal["law"] = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 0
    final_share: float = 0.1
    parts: dict[str, PartRule] = field(default_factory=dict)
    law_file: str | None = None

    @abstractmethod
    def made(self, groups: list[dict[str, Any]], peak: float) -> torch.optim.Optimizer:
        """The optimizer of these groups, each with its own ``lr`` and ``weight_decay``."""

    def freeze(self, model: MM1) -> None:
        """Freeze what rules freeze; before the model is wrapped for several ranks, which take note of what learns.

        Raises:
            UserError: A rule that matches no parameter, or nothing left to train.
        """
        for _, _, parameter, rule in self._ruled(model):
            if rule.frozen:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("model.optimizer.parts freezes every parameter; expected something left to train")

    def __call__(self, model: MM1, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimizer of what learns in ``model`` and its schedule over ``steps`` optimizer steps.

        Raises:
            UserError: A number that no optimizer can work with.
        """
        self._check()
        peak = law(model, self.law_file) if self.lr == "law" else float(self.lr)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for part, name, parameter, rule in self._ruled(model):
            if not parameter.requires_grad:
                continue
            lr = (peak if rule.lr is None else rule.lr) * rule.lr_scale
            decay = self.weight_decay if rule.weight_decay is None else rule.weight_decay
            decay = decay if decays(name, parameter) else 0.0
            warmup_steps = self.warmup_steps if rule.warmup_steps is None else rule.warmup_steps
            when = {"warmup_steps": warmup_steps, "start_step": rule.start_step}
            group = {"params": [], "lr": lr, "weight_decay": decay, "part": part, **when}
            groups.setdefault((part, lr, decay, *when.values()), group)["params"].append(parameter)
        optimizer = self.made(list(groups.values()), peak)
        schedules = [self._schedule(group["warmup_steps"], group["start_step"], steps) for group in groups.values()]
        return optimizer, LambdaLR(optimizer, schedules)

    def _check(self) -> None:
        peak = 0.0 if self.lr == "law" else self.lr
        numbers = {"lr": peak, "weight_decay": self.weight_decay, "warmup_steps": self.warmup_steps}
        numbers["final_share"] = self.final_share
        for pattern, rule in self.parts.items():
            given = {name: value for name, value in vars(rule).items() if value is not None}
            numbers |= {f"parts.{pattern}.{name}": value for name, value in given.items()}
        at_least(0, {f"model.optimizer.{name}": value for name, value in numbers.items()})

    def _ruled(self, model: MM1) -> Iterator[tuple[str, str, nn.Parameter, PartRule]]:
        named = [(_part_of(name), name, parameter) for name, parameter in model.named_parameters()]
        for pattern in self.parts:
            if not any(_matches(pattern, part, name) for part, name, _ in named):
                raise UserError(
                    f"model.optimizer.parts.{pattern} matches no parameter; expected a part "
                    f"({', '.join(model.parts())}) or a pattern such as vision.*.bias"
                )
        for part, name, parameter in named:
            rules = [rule for pattern, rule in self.parts.items() if _matches(pattern, part, name)]
            yield part, name, parameter, rules[-1] if rules else PartRule()

    def _schedule(self, warmup_steps: int, start_step: int, steps: int) -> Any:
        warm = start_step + warmup_steps

        def share(step: int) -> float:
            if step < start_step:
                return 0.0
            if step < warm:
                return (step - start_step + 1) / warmup_steps
            along = min(1.0, (step - warm) / max(1, steps - warm))
            return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * along))

        return share


@dataclass(frozen=True, kw_only=True)
class AdamW(Scheduled):
    """AdamW, linear warm-up, cosine to a final share of the peak.

    Warm-up, cosine to a tenth and the decay are MM1's. Its betas and epsilon are unpublished; these are the defaults of
    the framework that it was trained in.

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
        states: Type of the moments; ``bfloat16`` saves 4 bytes a parameter.
        masters: Whether weights in bfloat16 have masters in fp32; without them small updates are rounded away.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    states: States = "float32"
    masters: bool = True

    def made(self, groups: list[dict[str, Any]], peak: float) -> torch.optim.Optimizer:
        """torch's own on a CPU for fp32 alone, else ours in one pass."""
        check_moments(self.betas, self.eps)
        parameters = [parameter for group in groups for parameter in group["params"]]
        plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        if plain and self.states == "float32":
            optimizer = torch.optim.AdamW(groups, lr=peak, betas=self.betas, eps=self.eps)
            optimizer.register_load_state_dict_post_hook(_count_apart)
            return optimizer
        return MasterAdamW(groups, lr=peak, betas=self.betas, eps=self.eps, states=self.states, masters=self.masters)


def _count_apart(optimizer: torch.optim.Optimizer) -> None:
    """Let each parameter count its steps, as torch does it: what :class:`MasterAdamW` saved is one count for all."""
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def check_moments(betas: tuple[float, float], eps: float) -> None:
    """Refuse what no AdamW can work with.

    Raises:
        UserError: A decay of moments that is none, or a negative ``eps``.
    """
    at_least(0, {"model.optimizer.eps": eps})
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"model.optimizer.betas is {list(betas)}; expected two numbers from 0 to below 1")


def check_resumes(found: list[dict[str, Any]], optimizer: torch.optim.Optimizer, origin: object) -> None:
    """Refuse to go on with other settings: what an optimizer takes over from a checkpoint overrides them silently.

    Args:
        found: The checkpoint's parameter groups.
        optimizer: The optimizer as this run sets it.
        origin: The checkpoint's path, for the error.

    Raises:
        UserError: The first setting that differs, with both values.
    """
    ours = optimizer.param_groups
    set_here = ("initial_lr", "weight_decay", "warmup_steps", "start_step", *SET_ALIKE)
    kept = [name for name in set_here if any(name in group for group in (*found, *ours))]
    parts = [[(group["part"], len(group["params"])) for group in groups] for groups in (found, ours)]
    pairs = [("part (with its tensors)", *parts)] if parts[0] != parts[1] else []
    pairs += [
        (f"{name} of {group['part']}", was.get(name, 0), group.get(name, 0))
        for was, group in zip(found, ours, strict=False)
        for name in kept
    ]
    for name, was, now in pairs:
        if was != now:
            raise UserError(
                f"{origin} was trained with {name} = {was}, this run has {now}; a resumed run keeps its schedule: "
                f"restore model.optimizer, or start anew with --init_from"
            )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay touches a parameter: matrices and filters do, vectors, position tables and tokens do not."""
    apart = ("position", "pos_embed", "positional_embedding", "class_embedding", "cls_token")
    return parameter.ndim >= 2 and not any(word in name for word in apart)


def law(model: MM1, law_file: str | None = None) -> float:
    """The peak rate that the law gives for this decoder, announced with what the law was fitted for.

    Raises:
        UserError: ``law_file`` cannot be read as slope and intercept.
    """
    slope, intercept = (SLOPE, INTERCEPT) if law_file is None else _read_law(Path(law_file))
    size = parameters(model).dense_twin
    rate = math.exp(slope * math.log(size) + intercept)
    log.warning(
        "learning rate by law: exp(%.4f ln %d - %.4f) = %.3g for a decoder of %.4g M non-embedding parameters%s",
        slope,
        size,
        -intercept,
        rate,
        size / 1e6,
        "; MM1 fitted it for continued pre-training at 2M positions a batch, elsewhere it is a guess"
        if law_file is None
        else f", fitted in {law_file}",
    )
    return rate


def _read_law(path: Path) -> tuple[float, float]:
    try:
        fitted: Mapping[str, Any] = yaml.safe_load(path.read_text())
        return float(fitted["slope"]), float(fitted["intercept"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model.optimizer.law_file {path} gives no law ({error}); expected YAML with slope and intercept"
        ) from None


def _part_of(name: str) -> str:
    return name.split(".", 1)[0]


def _matches(pattern: str, part: str, name: str) -> bool:
    return pattern == part or fnmatch(name, pattern)
