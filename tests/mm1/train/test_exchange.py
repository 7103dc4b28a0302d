"""Experts on several ranks give what they give on one, whoever has tokens and whichever way they were chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mm1.model.moe.dispatch import Dispatch, LocalDispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.routing import Choice, ExpertChoice, TokenChoice
from mm1.train.exchange import Exchange, Overlapped
from mm1.train.shadow import Costs
from mm1.train.shadowed import Shadowed
from tests.mm1.train.test_parallel import on_ranks

EXPERTS, WIDTH = 4, 8


def free(x_MD: Tensor) -> Choice:
    """Whatever the numbers say."""
    weights_MK, experts_MK = x_MD[:, :EXPERTS].softmax(-1).topk(2)
    return TokenChoice(experts_MK, weights_MK)


def all_to_the_first(x_MD: Tensor) -> Choice:
    """Nothing for the experts of the second rank."""
    choice = free(x_MD)
    assert isinstance(choice, TokenChoice)
    return TokenChoice(choice.experts_MK.argsort(-1), choice.weights_MK)  # experts 0 and 1 in some order


def with_capacity(x_MD: Tensor) -> Choice:
    """Every third choice dropped, and rows that are left over."""
    choice = free(x_MD)
    assert isinstance(choice, TokenChoice)
    kept_MK = torch.arange(choice.experts_MK.numel()).view_as(choice.experts_MK) % 3 > 0
    return choice.keep(kept_MK, limit=2 * len(x_MD) - len(x_MD) // 2)


def by_experts(x_MD: Tensor) -> Choice:
    """Experts choose half of the tokens."""
    weights_EN, tokens_EN = x_MD[:, :EXPERTS].T.softmax(0).topk(len(x_MD) // 2)
    return ExpertChoice(tokens_EN, weights_EN)


def experts() -> Experts:
    layer = Experts(WIDTH, 6, EXPERTS).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(generator=generator)
    return layer


def in_two(group: dist.ProcessGroup) -> Dispatch:
    return Overlapped(group)


def in_three(group: dist.ProcessGroup) -> Dispatch:
    return Overlapped(group, parts=3)


def some_shadowed(group: dist.ProcessGroup) -> Dispatch:
    """One or two of four experts are brought to their tokens at this price."""
    return Shadowed(group, Costs(row_s=1.0, move_s=1.0, expert_s=2.0))


def all_shadowed(group: dist.ProcessGroup) -> Dispatch:
    """Weights cost nothing, so that no row travels."""
    return Shadowed(group, Costs(row_s=1.0, move_s=1.0, expert_s=0.0))


Make = Callable[[dist.ProcessGroup], Dispatch]


def compare(rank: int, make: Make, choose: Callable[[Tensor], Choice], tokens: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(count, WIDTH, dtype=torch.float64, generator=generator) for count in tokens]
    whole, part = experts(), experts()
    here = EXPERTS // len(tokens)
    for name, weight in [*part.named_parameters()]:
        setattr(part, name, torch.nn.Parameter(weight.detach().split(here)[rank].clone()))

    for number, x_MD in enumerate(inputs):
        mine = x_MD.clone().requires_grad_()
        expected_MD = LocalDispatch()(mine, choose(mine).rows(EXPERTS), whole)
        expected_MD.square().sum().backward()
        if number == rank:
            x_grad, y_MD = mine.grad, expected_MD
    x_MD = inputs[rank].requires_grad_()
    dispatch = make(dist.group.WORLD)
    found_MD = dispatch(x_MD, choose(x_MD).rows(EXPERTS), part)
    assert not isinstance(dispatch, Shadowed) or dispatch.hot
    found_MD.square().sum().backward()
    torch.testing.assert_close(found_MD, y_MD)
    torch.testing.assert_close(x_MD.grad, x_grad)
    for weight, ours in zip(whole.parameters(), part.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(ours.grad, weight.grad.split(here)[rank])


@pytest.mark.parametrize(
    ("make", "choose", "tokens"),
    [
        (Exchange, free, (6, 5)),
        (Exchange, free, (6, 0)),
        (Exchange, all_to_the_first, (6, 5)),
        (Exchange, with_capacity, (6, 8)),
        (Exchange, by_experts, (6, 4)),
        (Exchange, free, (3, 0, 7, 4)),
        (in_two, free, (6, 0)),
        (in_two, all_to_the_first, (6, 5)),
        (in_two, with_capacity, (6, 8)),
        (in_two, by_experts, (6, 4)),
        (in_three, free, (3, 0, 7, 1)),
        (all_shadowed, free, (6, 0)),
        (some_shadowed, all_to_the_first, (6, 5)),
        (some_shadowed, with_capacity, (6, 8)),
        (all_shadowed, by_experts, (6, 4)),
        (some_shadowed, free, (3, 0, 7, 4)),
    ],
)
def test_experts_of_several_ranks_are_those_of_one(
    make: Make, choose: Callable[[Tensor], Choice], tokens: tuple[int, ...]
) -> None:
    on_ranks(len(tokens), compare, make, choose, tokens)


def log_a_step(rank: int, found: Path) -> None:
    log: list[str] = []
    send = dist.all_to_all_single

    def logged(*arguments: Any, **options: Any) -> Any:
        log.append("send")
        return send(*arguments, **options)

    dist.all_to_all_single = logged
    layer = Experts(WIDTH, 6, EXPERTS // 2)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(0.1)
    layer.register_forward_hook(lambda *_: log.append("experts"))
    layer.register_full_backward_hook(lambda *_: log.append("experts"))
    x_MD = torch.randn(6, WIDTH, requires_grad=True)
    y_MD = Overlapped(dist.group.WORLD)(x_MD, free(x_MD).rows(EXPERTS), layer)
    log.append("backward")
    y_MD.sum().backward()
    if rank == 0:
        found.write_text(" ".join(log))


def test_a_part_is_computed_while_others_travel(tmp_path: Path) -> None:
    """Forward: sizes; both parts, which are rows and weights; and answers, each when it is there. Backward likewise."""
    on_ranks(2, log_a_step, tmp_path / "log")
    forward, backward = (tmp_path / "log").read_text().split(" backward ")
    assert forward == "send send send send send experts send experts send"
    assert backward == "send send experts send send experts send send"
