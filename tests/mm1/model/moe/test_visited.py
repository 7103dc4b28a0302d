"""How many experts a token visited: over its sub-tokens, and none where all choices were dropped."""

from __future__ import annotations

import torch

from mm1.model.moe.routing import Places, Routing, TokenChoice
from mm1.model.moe.stats import GAUGES, measure


def counted(choice: TokenChoice, places: Places) -> dict[str, float]:
    logits_BTE = torch.zeros(*places.valid_BT.shape, 4)
    hot_ME = choice.hot(places.valid_BT.numel(), 4)
    _, gauges_LGN, _ = measure(Routing(choice, logits_BTE, logits_BTE.softmax(-1)), hot_ME, places)
    return dict(zip(GAUGES, gauges_LGN.sum((0, 1)).tolist(), strict=True))


def test_a_token_visits_the_experts_of_all_its_sub_tokens_once() -> None:
    places = Places.of_text(torch.tensor([[True, True, False]])).split(2)
    choice = TokenChoice(torch.tensor([[0, 1], [2, 1], [3, 0], [0, 3], [0, 1], [2, 3]]), torch.full((6, 2), 0.5))
    found = counted(choice, places)
    assert found["visited"] / found["tokens"] == (3 + 2) / 2
    assert found["covered"] == found["tokens"] == 4


def test_a_dropped_choice_is_no_visit() -> None:
    kept_MK = torch.tensor([[True, False], [False, False]])
    choice = TokenChoice(torch.tensor([[0, 1], [2, 1]]), torch.full((2, 2), 0.5), kept_MK)
    found = counted(choice, Places.of_text(torch.ones(1, 2, dtype=torch.bool)))
    assert found["visited"] == found["covered"] == 1
    assert found["tokens"] == 2
