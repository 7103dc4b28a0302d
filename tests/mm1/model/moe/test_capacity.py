"""Who finds room at an expert, in what order, and what becomes of those who do not."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1.errors import UserError
from mm1.model.moe.capacity import Capacity
from mm1.model.moe.routers import GShard, TopK
from mm1.model.moe.routing import ExpertChoice, Places, Routing, TokenChoice
from tests.mm1.model.moe.reference import answer, moe, text, tokens


def routing(shares, top_k, kept=None):
    """The best ``top_k`` of shares [B, T, E]."""
    weights, experts = shares.flatten(0, 1).topk(top_k)
    return Routing(TokenChoice(experts, weights, kept), shares.log(), shares)


def kept(routed, places=None, **options):
    """What of [B, T, K] is kept, by capacity 1."""
    shape = routed.shares_BTE.shape
    places = places or text(*shape[:2])
    choice = Capacity(1.0, **options)(routed, places, shape[-1], True)
    return choice.kept_MK.unflatten(0, shape[:2])


# Four tokens, two experts, top-1, all of them prefer the first expert: there is room for two.
SAME = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2]])


def test_first_come_first_served():
    assert kept(routing(SAME[None], 1)).flatten().tolist() == [True, True, False, False]


@pytest.mark.parametrize("priority", ["probability", "batch"])
def test_the_surest_first(priority):
    assert kept(routing(SAME[None], 1), priority=priority).flatten().tolist() == [False, True, False, True]


def test_all_first_choices_come_before_any_second_one():
    """Three experts with room for two. The third token's first choice is the others' second one."""
    shares = torch.tensor([[[0.5, 0.4, 0.1], [0.55, 0.44, 0.01], [0.1, 0.6, 0.3]]])
    assert kept(routing(shares, 2)).tolist() == [[[True, True], [True, False], [True, True]]]
    assert kept(routing(shares, 2), priority="batch").tolist() == [[[True, False], [True, True], [True, True]]]


def test_by_probability_a_sure_second_choice_comes_before_an_unsure_first_one():
    """Room for two. The second expert is wanted at 0.45, 0.44 and, as a first choice, at 0.4."""
    shares = torch.tensor([[[0.5, 0.45, 0.05], [0.55, 0.44, 0.01], [0.35, 0.4, 0.25]]])
    assert kept(routing(shares, 2), priority="probability")[0, 2].tolist() == [False, False]
    assert kept(routing(shares, 2))[0, 2].tolist() == [True, False]


def test_tokens_compete_within_their_row_or_in_the_batch():
    """The first row wants expert 0 alone, the second expert 1 alone."""
    shares = torch.stack([SAME, SAME.flip(-1)])
    assert kept(routing(shares, 1)).sum() == 4
    assert kept(routing(shares, 1), group="batch").sum() == 8


def test_padding_and_what_the_router_gave_up_take_nobodys_room():
    valid = torch.tensor([[False, True, True, True]])
    assert kept(routing(SAME[None], 1), Places.of_text(valid)).flatten().tolist() == [False, True, True, False]
    given_up = torch.tensor([[True], [False], [True], [True]])
    assert kept(routing(SAME[None], 1, given_up)).flatten().tolist() == [True, False, True, False]


@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 99),
    st.sampled_from([1.0, 1.3, 2.0]),
)
@pytest.mark.parametrize("priority", ["position", "probability", "batch"])
@pytest.mark.parametrize("group", ["row", "batch"])
def test_against_a_queue_before_each_expert(priority, group, rows, length, experts, top_k, seed, factor):
    top_k = min(top_k, experts)
    g = torch.Generator().manual_seed(seed)
    shares = torch.randn(rows, length, experts, generator=g).softmax(-1)
    places = Places.of_text(torch.rand(rows, length, generator=g) > 0.2)
    routed, capacity = routing(shares, top_k), Capacity(factor, priority=priority, group=group)
    choice = capacity(routed, places, experts, True)
    tokens = length if group == "row" else rows * length
    chosen, best = routed.choice.experts_MK.tolist(), shares.flatten(0, 1).amax(-1).tolist()
    entitled = {
        "position": lambda token, k: (k, token),
        "batch": lambda token, k: (k, -best[token], token),
        "probability": lambda token, k: (-routed.choice.weights_MK[token, k].item(), k, token),
    }[priority]
    queue = sorted(((token, k) for token in range(rows * length) for k in range(top_k)), key=lambda c: entitled(*c))
    taken, expected = {}, torch.zeros(rows * length, top_k, dtype=torch.bool)
    for token, k in queue:
        if places.valid_BT.flatten()[token]:
            expert = (token // tokens, chosen[token][k])
            taken[expert] = taken.get(expert, 0) + 1
            expected[token, k] = taken[expert] <= -(-factor * top_k * tokens // experts)
    assert torch.equal(choice.kept_MK, expected)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("group", ["row", "batch"])
@pytest.mark.parametrize("kind", [TopK, GShard])
def test_what_found_no_room_is_left_out_of_the_sum_and_its_gradients(kind, group, pad):
    capacity = Capacity(1.0, group=group, pad=pad)
    layer = moe(kind, capacity=capacity, dtype=torch.float64, experts=6)
    x = tokens(2, 5, dtype=torch.float64).abs().requires_grad_()  # so that some experts are wanted most
    places = Places.of_text(torch.tensor([[True] * 5, [True] * 4 + [False]]))
    torch.manual_seed(0)
    y, stats = layer(x, places)
    found = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    torch.manual_seed(0)
    choice = capacity(layer.router(x, places), places, 6, True)
    assert not choice.kept_MK[:9].all()
    expected = answer(layer, x, choice)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()]), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert stats.load_LE.sum() == choice.kept_MK.sum()


def test_padded_rows_are_exactly_the_capacity_of_every_expert():
    routed = routing(torch.stack([SAME, SAME]), 1)
    rows = Capacity(1.5, pad=True)(routed, text(2, 4), 2, True).rows(2)
    assert rows.counts_E.tolist() == [6, 6]  # 1.5 * 4 / 2 = 3 of each of two rows
    assert rows.tokens_R.shape == rows.weights_R.shape == (12,)
    assert rows.tokens_R[:6].tolist() == [0, 1, 2, 4, 5, 6]
    assert rows.rows_MK.flatten().tolist() == [0, 1, 2, -1, 3, 4, 5, -1]
    assert torch.equal(rows.weights_R[:6], SAME[[0, 1, 2, 0, 1, 2], 0])
    assert not rows.weights_R[6:].any()


def test_a_capacity_never_makes_more_rows_than_there_are_choices_or_room():
    shares = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for factor, top_k, length in ((1.0, 1, 6), (1.0, 2, 12), (4.0, 2, 12)):
        rows = Capacity(factor)(routing(shares, top_k), text(1, 6), 8, True).rows(8)
        assert len(rows.tokens_R) == rows.counts_E.sum() == length
    # all 8 tokens want one expert, which takes 2 of each row
    rows = Capacity(1.0)(routing(torch.stack([SAME, SAME]), 1), text(2, 4), 2, True).rows(2)
    assert len(rows.tokens_R) == 8
    assert (rows.weights_R > 0).sum() == 4


def test_factors_of_training_and_evaluation(caplog):
    routed = routing(SAME[None], 1)
    with caplog.at_level(logging.WARNING):
        assert Capacity(1.0)(routed, text(1, 4), 2, False) is routed.choice
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        capacity = Capacity(2.0, evaluate=1.5)
    assert "capacity.evaluate is 1.5: an answer will depend on what else is in its batch" in caplog.text
    assert capacity(routed, text(1, 4), 2, True).kept_MK.sum() == 4
    assert capacity(routed, text(1, 4), 2, False).kept_MK.sum() == 3
    chosen = Routing(ExpertChoice(torch.tensor([[0], [1]]), torch.ones(2, 1)), routed.logits_BTE, routed.shares_BTE)
    assert capacity(chosen, text(1, 4), 2, True) is chosen.choice


@pytest.mark.parametrize("pad", [False, True])
def test_an_infinite_factor_keeps_everything(pad):
    kept = Capacity(float("inf"), pad=pad)(routing(SAME[None], 1), text(1, 4), 2, True).kept_MK
    assert kept.all()


def test_the_drop_rate_is_what_found_no_room_of_what_was_wanted():
    layer = moe(experts=2, top_k=1, capacity=Capacity(1.0))
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
    places = Places.of_text(torch.tensor([[True] * 6 + [False] * 2]))
    _, stats = layer(tokens(1, 8).abs(), places)  # 4 of 6 find room
    assert stats.gauges_LGN[0, :, 4].tolist() == [2, 0]
    assert stats.load_LE.tolist() == [[4, 0]]
    torch.manual_seed(0)
    _, stats = moe(GShard)(tokens(1, 8), text(1, 8))  # second experts that were not wanted are not dropped
    assert stats.load_LE.sum() < 16
    assert stats.gauges_LGN[0, 0, 4] == 0


@pytest.mark.parametrize("factor", [0.99, 0, -1, float("nan")])
def test_a_factor_below_one_is_refused(factor):
    with pytest.raises(UserError, match=r"capacity.train is .*; expected 1 or more"):
        Capacity(factor)
    with pytest.raises(UserError, match=r"capacity.evaluate is .*; expected 1 or more"):
        Capacity(1.25, factor)
