"""The bias that only chooses: what it moves, what it never touches, and which groups it leaves a token."""

import pytest
import torch

from mm1.errors import UserError
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Sigmoid
from mm1.model.moe.routing import Places


def filled(**options):
    router = Sigmoid(8, 8, 2, **options)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    router.reset()
    return router


X = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(2))
TEXT = Places.of_text(torch.ones(2, 10, dtype=torch.bool))


def itself(tensor):
    return tensor


def test_chosen_by_score_and_bias_weighted_by_the_score_alone():
    router = filled(scale=2.5)
    router.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0, 0, 0, -9.0]))
    choice = router(X, TEXT).choice
    assert (choice.experts_MK == 0).any(1).all()
    assert not (choice.experts_MK == 7).any()
    scores = (X.flatten(0, 1) @ router.weight.T).sigmoid().gather(1, choice.experts_MK)
    assert torch.allclose(choice.weights_MK, 2.5 * scores / scores.sum(-1, keepdim=True), atol=1e-6)


def test_shares_are_scores_over_their_sum_even_where_all_scores_vanish():
    router = filled()
    scores = (X @ router.weight.T).sigmoid()
    assert torch.allclose(router(X, TEXT).shares_BTE, scores / scores.sum(-1, keepdim=True), atol=1e-6)
    with torch.no_grad():
        router.weight.copy_(-200 * torch.ones(8, 8))
    routing = router(X.abs() + 1, TEXT)
    assert torch.allclose(routing.shares_BTE.sum(-1), torch.ones(2, 10))
    assert torch.allclose(routing.choice.weights_MK.sum(-1), torch.ones(20))


def test_a_step_moves_the_bias_by_the_rate_towards_the_mean():
    router = filled(rate=0.25)
    router.after_step(torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 3]), itself)  # the mean is 3
    assert router.bias.tolist() == [0.25, 0.25, 0.25, 0, -0.25, -0.25, -0.25, 0]
    assert not filled(rate=0).adapts


def test_steps_bring_balance_without_a_gradient():
    router = filled(rate=0.01)
    assert "bias" in router.state_dict()
    assert [name for name, _ in router.named_parameters()] == ["weight"]

    def load():
        return router(X, TEXT).choice.hot(20, 8).sum(0)

    before = load().max()
    for _ in range(200):
        router.after_step(load(), itself)
    assert load().max() < before
    assert load().max() <= 1.5 * 5


def test_a_token_stays_in_its_best_groups():
    router = filled(groups=4, groups_kept=1)
    scores = (X.flatten(0, 1) @ router.weight.T).sigmoid()
    best = scores.view(20, 4, 2).sum(-1).argmax(-1)
    chosen = router(X, TEXT).choice.experts_MK
    assert torch.equal(chosen // 2, best[:, None].expand(20, 2))
    with pytest.raises(UserError, match="1 groups can be left with 1 experts while a token visits 2"):
        router.fail([0])
    assert router.failed == ()


def test_failed_experts_are_left_out_and_gradients_stay_finite():
    layer = MoE(8, 12, experts=8, top_k=2, router=lambda *sizes: filled(groups=2, groups_kept=1))
    for parameter in layer.experts.parameters():
        torch.nn.init.normal_(parameter)
    layer.router.fail([0, 5])
    y, stats = layer(X, TEXT)
    assert stats.load_LE[0, [0, 5]].tolist() == [0, 0]
    (y.square().sum() + stats.balance).backward()
    assert layer.router.weight.grad.isfinite().all()
    assert layer.router.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "3 groups of 8 experts; expected a divisor"),
        ({"groups": 8, "groups_kept": 1}, "groups_kept is 1 of 8 groups of 1 experts for top_k=2"),
        ({"groups_kept": 2}, "groups_kept is 2 of 1 groups"),
        ({"rate": -1.0}, "rate is -1.0; expected at least 0"),
        ({"scale": 0.0}, "scale is 0.0; expected a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sigmoid(8, 8, 2, **options)
