"""Experts on several ranks give what they give on one, whoever has tokens and whichever way they were chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mm1.model.moe.dispatch import LocalDispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.routing import Choice, ExpertChoice, TokenChoice
from mm1.train.exchange import Exchange
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


def compare(rank: int, choose: Callable[[Tensor], Choice], tokens: tuple[int, ...]) -> None:
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
    found_MD = Exchange(dist.group.WORLD)(x_MD, choose(x_MD).rows(EXPERTS), part)
    found_MD.square().sum().backward()
    torch.testing.assert_close(found_MD, y_MD)
    torch.testing.assert_close(x_MD.grad, x_grad)
    for weight, ours in zip(whole.parameters(), part.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(ours.grad, weight.grad.split(here)[rank])


@pytest.mark.parametrize(
    ("choose", "tokens"),
    [
        (free, (6, 5)),
        (free, (6, 0)),
        (all_to_the_first, (6, 5)),
        (with_capacity, (6, 8)),
        (by_experts, (6, 4)),
        (free, (3, 0, 7, 4)),
    ],
)
def test_experts_of_several_ranks_are_those_of_one(choose: Callable[[Tensor], Choice], tokens: tuple[int, ...]) -> None:
    on_ranks(len(tokens), compare, choose, tokens)
