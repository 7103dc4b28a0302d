"""Mixture of experts: routing, its two losses, and the way to the experts and back."""

import pytest
import torch
from torch.nn.functional import linear

from mm1.errors import UserError
from mm1.model.ffn import gated
from mm1.model.moe.dispatch import LocalDispatch
from mm1.model.moe.layer import MoE
from mm1.model.moe.router import Router, balance_sum, count


def moe(experts=4, top_k=2, width=8, seed=0):
    layer = MoE(width, 12, experts=experts, top_k=top_k)
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(seed + index))
    return layer


def tokens(rows=2, length=6, width=8, seed=9):
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def test_a_token_is_the_weighted_sum_of_its_experts():
    layer, x = moe(), tokens()
    y, _ = layer(x, torch.ones(2, 6, dtype=torch.bool))
    for row in range(2):
        for position in range(6):
            vector = x[row, position]
            best = (layer.router.weight @ vector).softmax(0).topk(2)
            shares = best.values / best.values.sum()
            experts = layer.experts
            outputs = [experts.down[e] @ gated(experts.gate_up[e] @ vector) for e in best.indices]
            assert torch.allclose(y[row, position], sum(s * o for s, o in zip(shares, outputs, strict=True)), atol=1e-5)


def test_nothing_is_dropped_when_all_tokens_choose_the_same_experts():
    layer, x = moe(), tokens(rows=1).abs()
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([-1.0, 2.0, -1.0, 1.0])[:, None].expand(4, 8))
    y, stats = layer(x, torch.ones(1, 6, dtype=torch.bool))
    assert stats.load_LE.tolist() == [[0, 6, 0, 6]]
    weights = linear(x, layer.router.weight).softmax(-1)[..., [1, 3]]
    weights = weights / weights.sum(-1, keepdim=True)
    experts = layer.experts
    expected = sum(
        weights[..., i : i + 1] * linear(gated(linear(x, experts.gate_up[e])), experts.down[e])
        for i, e in [(0, 1), (1, 3)]
    )
    assert torch.allclose(y, expected, atol=1e-5)
    y.sum().backward()
    assert experts.down.grad[0].abs().max() == 0
    assert experts.down.grad[1].abs().max() > 0


def test_balance_is_one_at_perfect_balance_and_the_number_of_experts_at_collapse():
    valid = torch.ones(1, 8, dtype=torch.bool)
    even = torch.full((1, 8, 4), 0.25)
    choices = torch.tensor([[0, 1], [2, 3]] * 4).unsqueeze(0)
    assert balance_sum(even, count(choices, valid, 4), valid, 2) == 8  # one, for each of 8 tokens
    one_hot = torch.eye(4)[torch.zeros(1, 8, dtype=torch.int64)]
    assert balance_sum(one_hot, count(torch.zeros(1, 8, 1, dtype=torch.int64), valid, 4), valid, 1) == 8 * 4


def test_balance_of_a_worked_example():
    """Two tokens and a padded one, two experts, top-1: f = (1, 0), P = (0.8, 0.2), so 2 * 0.8 = 1.6 a token."""
    probabilities = torch.tensor([[[0.9, 0.1], [0.7, 0.3], [0.0, 1.0]]])
    valid = torch.tensor([[True, True, False]])
    chosen = count(torch.tensor([[[0], [0], [1]]]), valid, 2)
    assert chosen.tolist() == [[2, 0]]
    assert torch.allclose(balance_sum(probabilities, chosen, valid, 1), torch.tensor(2 * 1.6))


def test_an_untrained_router_is_balanced_and_its_z_loss_is_the_square_of_log_experts():
    router = Router(8, 16, 2, 0.01, 0.001)
    torch.nn.init.zeros_(router.weight)
    _, stats = router(tokens(rows=1, length=5), torch.ones(1, 5, dtype=torch.bool))
    assert torch.allclose(stats.z / 5, torch.tensor(16.0).log() ** 2, atol=1e-5)
    assert torch.allclose(stats.balance / 5, torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(stats.loss, 0.01 * stats.balance + 0.001 * stats.z)


def test_padding_counts_nowhere():
    layer, x = moe(), tokens()
    valid = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    _, padded = layer(x, valid)
    _, alone = layer(x[:1, :4], valid[:1, :4])
    for name in ("loss", "balance", "z", "load_LE"):
        assert torch.allclose(getattr(padded, name), getattr(alone, name)), name
    assert padded.load_LE.sum() == 4 * 2


def test_both_losses_reach_the_router():
    for coefficients in ({"balance_weight": 1.0, "z_weight": 0.0}, {"balance_weight": 0.0, "z_weight": 1.0}):
        router = Router(8, 4, 2, **coefficients)
        torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
        router(tokens(), torch.ones(2, 6, dtype=torch.bool))[1].loss.backward()
        assert router.weight.grad.abs().max() > 1e-3


def test_the_router_computes_in_fp32_under_autocast():
    layer, x = moe(), tokens()
    valid = torch.ones(2, 6, dtype=torch.bool)
    expected, _ = layer.router(x, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, stats = layer.router(x, valid)
    assert torch.equal(found.weights_BTK, expected.weights_BTK)
    assert stats.loss.dtype == torch.float32


def test_another_dispatch_can_take_the_place_of_the_local_one():
    class Shuffled(LocalDispatch):
        """Sends the experts' rows through a permutation of the tokens and back, as an exchange between ranks would."""

        def __call__(self, x_BTD, routing, experts):
            order = torch.arange(x_BTD.shape[1]).flip(0)
            routing.experts_BTK, routing.weights_BTK = routing.experts_BTK[:, order], routing.weights_BTK[:, order]
            return super().__call__(x_BTD[:, order], routing, experts)[:, order]

    layer, x = moe(), tokens()
    valid = torch.ones(2, 6, dtype=torch.bool)
    expected, _ = layer(x, valid)
    layer.dispatch = Shuffled()
    assert torch.allclose(layer(x, valid)[0], expected, atol=1e-6)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(UserError, match="top_k=5 of 4 experts; expected 1 to 4"):
        MoE(8, 8, experts=4, top_k=5)


def test_every_nth_layer_is_sparse(model):
    layers = model(experts=4, layers=6, moe_every=3).decoder.layers
    assert [isinstance(layer.ffn, MoE) for layer in layers] == [False, False, True, False, False, True]


@pytest.mark.parametrize("moe_every", [0, 3])
def test_a_mixture_without_a_sparse_layer_is_refused(model, moe_every):
    with pytest.raises(UserError, match=f"moe_every={moe_every} of 2 layers.*expected 1 to 2"):
        model(experts=4, moe_every=moe_every)
