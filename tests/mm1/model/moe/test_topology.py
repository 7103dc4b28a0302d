"""The topology-aware router keeps choices on their machine beyond a share of them, and only in training."""

from __future__ import annotations

import pytest
import torch

from mm1.errors import UserError
from mm1.model.moe.routers import TopK, Topology
from mm1.model.moe.routing import Places, TokenChoice

EXPERTS, WIDTH, POSITIONS, TOP_K = 8, 8, 32, 2
PLACES = Places.of_text(torch.ones(4, POSITIONS, dtype=torch.bool))


def router(far_share: float) -> Topology:
    layer = Topology(WIDTH, EXPERTS, TOP_K, nodes=2, far_share=far_share)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(EXPERTS, WIDTH))
    return layer


def choice_of(layer: TopK, x_BTD: torch.Tensor) -> TokenChoice:
    choice = layer(x_BTD, PLACES).choice
    assert isinstance(choice, TokenChoice)
    return choice


@pytest.mark.parametrize("home", [None, 0, 1])
@pytest.mark.parametrize("far_share", [0.0, 0.25])
def test_no_more_than_the_share_leaves_the_machine(far_share: float, home: int | None) -> None:
    layer = router(far_share)
    layer.home = home
    x_BTD = torch.randn(4, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    free, near = choice_of(layer.eval(), x_BTD), choice_of(layer.train(), x_BTD)
    home_B = torch.arange(4) % 2 if home is None else torch.full((4,), home)
    far = near.experts_MK.view(4, -1) // 4 != home_B.unsqueeze(-1)
    assert far.sum(1).tolist() == [int(far_share * POSITIONS * TOP_K)] * 4  # free choice would take more
    assert (near.experts_MK[:, 0] != near.experts_MK[:, 1]).all()
    torch.testing.assert_close(near.weights_MK.sum(1), torch.ones(4 * POSITIONS))
    kept_BTK = (near.experts_MK.unsqueeze(-1) == free.experts_MK.unsqueeze(1)).any(1).view(4, -1)
    free_far = free.experts_MK.view(4, -1) // 4 != home_B.unsqueeze(-1)
    shares_BC = layer(x_BTD, PLACES).shares_BTE.flatten(0, 1).gather(1, free.experts_MK).view(4, -1)
    for row in range(4):  # the strongest stay
        lost = shares_BC[row][free_far[row] & ~kept_BTK[row]]
        stayed = shares_BC[row][free_far[row] & kept_BTK[row]]
        assert not len(stayed) or stayed.min() >= lost.max()


def test_padding_takes_nobody_s_way_to_another_machine() -> None:
    layer = router(0.25).train()
    x_BTD = torch.randn(4, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    valid_BT = torch.ones(4, POSITIONS, dtype=torch.bool)
    valid_BT[:, 20:] = False
    louder = x_BTD.where(valid_BT.unsqueeze(-1), 10 * x_BTD)
    found = [layer(x, Places.of_text(valid_BT)).choice.experts_MK.view(4, POSITIONS, TOP_K) for x in (x_BTD, louder)]
    assert torch.equal(*(experts_BTK[:, :20] for experts_BTK in found))
    home_B = torch.arange(4) % 2
    far_BTK = found[1] // 4 != home_B.view(4, 1, 1)
    assert far_BTK.sum((1, 2)).tolist() == [int(0.25 * 20 * TOP_K)] * 4


def test_without_a_limit_it_is_top_k() -> None:
    x_BTD = torch.randn(4, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))
    plain = TopK(WIDTH, EXPERTS, TOP_K)
    limited = router(1.0)
    plain.load_state_dict(limited.state_dict())
    torch.testing.assert_close(choice_of(limited, x_BTD).weights_MK, choice_of(plain, x_BTD).weights_MK)


def test_machines_that_hold_too_few_are_told() -> None:
    with pytest.raises(UserError, match="8 experts on 8 nodes; expected nodes that divide them and hold"):
        Topology(WIDTH, EXPERTS, TOP_K, nodes=8)
