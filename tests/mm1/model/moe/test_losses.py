"""Balance losses: one at perfect balance in every form, worked values, and what counts in them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1.errors import UserError
from mm1.model.moe.losses import Balance, ImportanceAndLoad, LoadTimesShare
from mm1.model.moe.routing import Places, Routing, TokenChoice
from tests.mm1.model.moe.reference import moe, text, tokens

FORMS = [LoadTimesShare, ImportanceAndLoad]


def loss(form, shares, experts, chance=None, places=None, top_k=1):
    """Of one [B, T, E] of shares and the first ``top_k`` of [B, T, K] choices."""
    places = places or text(*shares.shape[:2])
    choice = TokenChoice(experts.flatten(0, 1), torch.ones(experts.flatten(0, 1).shape))
    hot = choice.hot(shares.shape[0] * shares.shape[1], shares.shape[-1]).unflatten(0, shares.shape[:2])
    chance = hot if chance is None else chance
    return form(Routing(choice, shares.log(), shares, chance), hot, places)


def one(form, shares, experts, **more):
    """The loss of a token."""
    return loss(form, shares, experts, **more).item() / (shares.shape[0] * shares.shape[1])


def test_all_forms_are_tested():
    assert {*Balance.__subclasses__()} == {*FORMS}


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
@pytest.mark.parametrize("group", ["row", "batch", "global"])
@pytest.mark.parametrize("form", FORMS)
def test_one_at_perfect_balance(form, group, rows, experts, top_k, seed):
    """Whatever single tokens do: all turns of the same shares and choices add up to the same for every expert."""
    top_k = min(top_k, experts)
    shares = torch.rand(experts, generator=torch.Generator().manual_seed(seed)) + 0.01
    turned = torch.stack([(shares / shares.sum()).roll(turn) for turn in range(experts)])
    shares, chosen = turned.expand(rows, -1, -1), turned.topk(top_k).indices.expand(rows, -1, -1)
    assert one(form(group), shares, chosen) == pytest.approx(1, abs=1e-5)


@given(st.integers(2, 6), st.integers(0, 99))
@pytest.mark.parametrize("form", FORMS)
def test_more_than_one_where_some_get_more_and_the_number_of_experts_at_collapse(form, experts, seed):
    shares = (
        torch.rand(1, 8, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1) + torch.eye(experts)[0]
    )
    chosen = torch.zeros(1, 8, 1, dtype=torch.int64)
    assert one(form(), shares / shares.sum(-1, keepdim=True), chosen) > 1.01
    assert one(form(), torch.eye(experts)[0].expand(1, 8, -1), chosen) == pytest.approx(experts)


def test_importance_and_load_of_a_worked_example():
    """Importance (1.5, 0.5): mean 1, deviation 0.5, CV² 0.25. Load (1.8, 1.0, ...) likewise: (0.4 / 1.4)²."""
    shares = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])
    chance = torch.tensor([[[1.0, 0.3], [0.8, 0.7]]])
    chosen = torch.tensor([[[0], [0]]])
    importance, load = 1 + (0.5 / 1) ** 2, 1 + (0.4 / 1.4) ** 2
    for weights, expected in (((1, 0), importance), ((0, 1), load), ((0.3, 0.1), (3 * importance + load) / 4)):
        form = ImportanceAndLoad(importance=weights[0], load=weights[1])
        assert one(form, shares, chosen, chance=chance) == pytest.approx(expected, abs=1e-6)
        assert form.of_noise == (weights[1] > 0)


def test_load_times_share_of_worked_examples():
    """Switch, equation 4: f = (2/3, 1/3), P = (0.6, 0.4), 2 * (0.4 + 0.4/3). GShard's counts first choices alone."""
    shares = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]])
    first = 2 * (2 / 3 * 0.6 + 1 / 3 * 0.4)
    assert one(LoadTimesShare(), shares, torch.tensor([[[0], [0], [1]]])) == pytest.approx(first, abs=1e-6)
    both = torch.tensor([[[0, 1], [0, 1], [1, 0]]])
    assert one(LoadTimesShare(choices="first"), shares, both) == pytest.approx(first, abs=1e-6)
    assert one(LoadTimesShare(choices="all"), shares, both) == pytest.approx(1, abs=1e-6)


def random_routing(rows=2, length=5, experts=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    shares = torch.randn(rows, length, experts, generator=g, dtype=torch.float64).softmax(-1)
    chance = torch.rand(rows, length, experts, generator=g, dtype=torch.float64)
    return shares, shares.topk(2).indices, chance


PLACES = Places(
    torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    torch.tensor([[True, True, False, False, False], [False, True, False, False, True]]),
    torch.zeros(2, 5, dtype=torch.int64),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["all", "text", "image"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("group", ["row", "batch"])
def test_only_tokens_that_count_count_and_each_group_for_itself(form, kind, padding, group):
    shares, chosen, chance = random_routing()
    counts = torch.ones(2, 5, dtype=torch.bool) if padding else PLACES.valid_BT
    counts = counts & {"all": counts, "text": ~PLACES.image_BT, "image": PLACES.image_BT}[kind]
    expected = 0.0
    for rows in ([0], [1]) if group == "row" else ([0, 1],):
        here = counts[rows]
        parts = [tensor[rows][here].unsqueeze(0) for tensor in (shares, chosen, chance)]
        expected += one(form(), parts[0], parts[1], chance=parts[2]) * PLACES.valid_BT[rows].sum().item()
    found = loss(form(group, kind, padding), shares, chosen, chance, PLACES)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_where_nothing_counts_nothing_is_uneven(form):
    """Padding has no loss; text among which pictures are balanced has the loss of balance, and no gradient."""
    shares, chosen, chance = (t.requires_grad_() if t.is_floating_point() else t for t in random_routing())
    none = Places.of_text(torch.zeros(2, 5, dtype=torch.bool))
    for places, balance, expected in ((none, form(), 0), (text(2, 5), form(tokens="image"), 10)):
        value = loss(balance, shares, chosen, chance, places)
        assert value == expected
        assert not torch.autograd.grad(value, shares)[0].any()


@pytest.mark.parametrize("form", FORMS)
def test_the_global_loss_and_its_gradient_are_those_of_all_ranks_together(form):
    """Two ranks, one with padding, against one that has both their rows; ranks' gradients add up."""
    shares, chosen, chance = random_routing()
    inputs = [t.clone().requires_grad_() for t in (shares, chance)]
    whole = loss(form("batch"), inputs[0], chosen, inputs[1], PLACES)
    wanted = torch.autograd.grad(whole, inputs, allow_unused=True)
    ranks = [[tensor[row : row + 1] for tensor in (shares, chosen, chance)] for row in range(2)]
    places = [
        Places(PLACES.valid_BT[row : row + 1], PLACES.image_BT[row : row + 1], PLACES.sources_BT[row : row + 1])
        for row in range(2)
    ]

    def run(rank, sums):
        """One rank; ``sums`` holds what all ranks give to each exchange, in order."""
        balance, given = form("global"), []

        def over_ranks(x):
            given.append(x.clone())
            return x if sums is None else x.copy_(sums[len(given) - 1])  # in place, as some do

        balance.over_ranks = over_ranks
        own = [t.clone().requires_grad_() for t in (ranks[rank][0], ranks[rank][2])]
        value = loss(balance, own[0], ranks[rank][1], own[1], places[rank])
        return value, torch.autograd.grad(value, own, allow_unused=True), given

    exchanged = [run(rank, None)[2] for rank in range(2)]
    sums = [(first + second).detach() for first, second in zip(*exchanged, strict=True)]
    found = [run(rank, sums) for rank in range(2)]
    assert sum(value for value, _, _ in found).item() == pytest.approx(whole.item())
    for index, gradient in enumerate(wanted):
        if gradient is None:  # the other does not look at chances
            assert form is LoadTimesShare
        else:
            ours = torch.cat([gradients[index] for _, gradients, _ in found])
            assert torch.allclose(ours, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_descent_brings_balance(form):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 8, generator=g) + 1
    weight = (torch.randn(4, 8, generator=g) + torch.tensor([[1.0], [0], [0], [-1]])).requires_grad_()
    optimizer, first = torch.optim.SGD([weight], lr=1.0), None
    for _ in range(200):
        shares = (x @ weight.T).softmax(-1)
        value = loss(form("batch"), shares, shares.topk(1).indices, shares) / 64
        first = value.item() if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert first > 2
    assert value.item() < 1.1


def test_wrong_weights_are_refused():
    with pytest.raises(UserError, match=r"balance.load is -1; expected at least 0"):
        ImportanceAndLoad(load=-1)
    with pytest.raises(UserError, match=r"importance and load both weigh 0; expected one above 0"):
        ImportanceAndLoad(importance=0, load=0)
    assert math.isclose(ImportanceAndLoad(importance=0.3, load=0.1).importance, 0.75)


def test_rows_without_what_counts_are_even():
    """A row of text alone has nothing to balance among pictures, and must not pull the mean below one."""
    layer = moe(balance=LoadTimesShare(tokens="image"), balance_weight=1.0, z_weight=0.0)
    torch.nn.init.zeros_(layer.router.weight)
    image = torch.tensor([[True] * 4, [False] * 4])
    places = replace(text(2, 4), image_BT=image)
    _, stats = layer(tokens(2, 4), places)
    assert stats.balance.item() == pytest.approx(8.0)
    stats.loss.backward()
    assert layer.router.weight.grad.isfinite().all()
