"""What each of the classic routers does that the others do not."""

import pytest
import torch
from torch.nn.functional import linear, softplus

from mm1.errors import UserError
from mm1.model.moe.layer import MoE
from mm1.model.moe.losses import ImportanceAndLoad
from mm1.model.moe.routers import ForceBalanced, GShard, NoisyTopK, STMoE, Switch
from mm1.model.moe.routing import Places
from tests.mm1.model.moe.reference import moe, text, tokens

MANY = 4000


def router(kind, **options):
    return moe(kind, router=options).router


def test_noise_is_normal_of_the_learned_width_and_silent_in_evaluation():
    noisy, x = router(NoisyTopK, least_noise=0.1), tokens(1, 1)
    clean, std = linear(x, noisy.weight), softplus(linear(x, noisy.noise)) + 0.1
    torch.manual_seed(0)
    many = noisy(x.expand(1, MANY, 4), text(1, MANY))
    first, second = clean.squeeze() + std.squeeze() * torch.randn(2, 200_000, 1, 4)
    wins = torch.cat([first, second]).squeeze().argmax(-1).bincount(minlength=4) / 400_000
    found = many.choice.experts_MK[:, 0].bincount(minlength=4) / MANY
    assert torch.allclose(found, wins, atol=0.03)
    noisy.eval()
    quiet = [noisy(x, text(1, 1)) for _ in range(2)]
    assert torch.equal(quiet[0].choice.experts_MK, clean.view(1, 4).topk(2).indices)
    assert torch.equal(quiet[0].choice.weights_MK, quiet[1].choice.weights_MK)


def test_the_noisy_weights_are_a_softmax_over_what_was_kept():
    noisy, x = router(NoisyTopK).eval(), tokens(2, 3)
    routing = noisy(x, text(2, 3))
    kept = linear(x, noisy.weight).flatten(0, 1).topk(2).values.softmax(-1)
    assert torch.allclose(routing.choice.weights_MK, kept)
    assert torch.allclose(routing.shares_BTE.flatten(0, 1).gather(1, routing.choice.experts_MK), kept)
    assert ((routing.shares_BTE > 0).sum(-1) == 2).all()


def test_a_chance_is_how_often_an_expert_is_chosen_when_its_own_noise_is_drawn_again():
    noisy, x = router(NoisyTopK), tokens(1, 1, seed=4)
    clean, std = linear(x, noisy.weight).view(4), (softplus(linear(x, noisy.noise)) + 0.01).view(4)
    torch.manual_seed(7)
    chance = noisy(x, text(1, 1)).chance_BTE.view(4)
    torch.manual_seed(7)
    scores = clean + torch.randn(1, 1, 4).view(4) * std
    for expert in range(4):
        again = scores.expand(100_000, 4).clone()
        again[:, expert] = clean[expert] + torch.randn(100_000) * std[expert]
        chosen = (again.topk(2).indices == expert).any(1).float().mean()
        assert chance[expert].item() == pytest.approx(chosen.item(), abs=0.01)


def test_noisy_top_k_begins_at_zero_and_then_noise_alone_spreads_tokens():
    layer = MoE(4, 3, experts=4, top_k=2, router=NoisyTopK, balance=ImportanceAndLoad())
    layer.router.reset()
    assert not layer.router.weight.any()
    assert not layer.router.noise.any()
    torch.manual_seed(0)
    load = layer.router(tokens(1, MANY), text(1, MANY)).choice.experts_MK.flatten().bincount()
    assert load.max() / load.float().mean() < 1.1


@pytest.mark.parametrize(("kind", "threshold"), [(GShard, 0.5), (STMoE, 0.2)])
def test_the_second_expert_comes_by_chance_in_training_and_always_in_evaluation(kind, threshold):
    layer, x = router(kind), tokens(1, 1, seed=2)
    shares = linear(x, layer.weight).softmax(-1).view(4).topk(2).values
    shares = shares / shares.sum()
    assert shares[1] < 0.2  # so that both thresholds make a difference
    torch.manual_seed(0)
    choice = layer(x.expand(1, MANY, 4), text(1, MANY)).choice
    first, second = choice.kept_MK.float().mean(0)
    assert first == 1
    assert second.item() == pytest.approx(shares[1].item() / threshold, abs=0.03)
    assert torch.allclose(choice.weights_MK[0], shares)  # dropping the second leaves the first as it was
    assert layer.eval()(x, text(1, 1)).choice.kept_MK is None


def test_switch_scales_by_how_sure_it_is_and_shakes_what_it_reads_in_training_alone():
    layer, x = router(Switch, jitter=0.3).eval(), tokens(2, 3)
    shares = linear(x, layer.weight).softmax(-1).flatten(0, 1)
    choice = layer(x, text(2, 3)).choice
    assert torch.equal(choice.weights_MK, shares.amax(-1, keepdim=True))
    assert torch.equal(choice.experts_MK, shares.argmax(-1, keepdim=True))
    layer.train()
    torch.manual_seed(1)
    logits = layer(x, text(2, 3)).logits_BTE
    torch.manual_seed(1)
    assert torch.equal(logits, linear(x * torch.empty_like(x).uniform_(0.7, 1.3), layer.weight))


@pytest.mark.parametrize("weights", ["softmax", "even"])
@pytest.mark.parametrize("failed", [[], [1, 3]])
def test_force_balanced_is_even_whatever_comes_in(weights, failed):
    layer = moe(ForceBalanced, experts=6, top_k=2, router={"weights": weights})
    layer.router.fail(failed)
    left = 6 - len(failed)
    for x in (tokens(2, left), torch.full((2, left, 4), 9.0)):
        routing = layer.router(x, text(2, left))
        load = routing.choice.experts_MK.flatten().bincount(minlength=6)
        assert load.tolist() == [0 if expert in failed else 4 for expert in range(6)]
        assert torch.allclose(routing.choice.weights_MK.sum(1), torch.ones(2 * left))
        assert (routing.choice.experts_MK[:, 0] != routing.choice.experts_MK[:, 1]).all()
    if weights == "even":
        assert torch.equal(routing.choice.weights_MK, torch.full((2 * left, 2), 0.5))


def test_force_balanced_is_even_over_what_is_no_padding_and_over_all():
    valid = torch.tensor([[True, False, True, True], [False, True, False, True]])
    choice = moe(ForceBalanced, experts=4, top_k=1).router(tokens(2, 4), Places.of_text(valid)).choice
    assert choice.experts_MK[valid.flatten()].flatten().bincount(minlength=4).max() == 2
    assert choice.experts_MK.flatten().bincount(minlength=4).tolist() == [2, 2, 2, 2]


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"Switch with top_k=2; expected 1"):
        Switch(8, 4, 2)
    with pytest.raises(UserError, match=r"STMoE with top_k=1; expected 2"):
        STMoE(8, 4, 1)
    with pytest.raises(UserError, match=r"router.jitter is 1.0; expected at least 0 and less than 1"):
        Switch(8, 4, 1, jitter=1.0)
    with pytest.raises(UserError, match=r"router.threshold is 0; expected a share"):
        GShard(8, 4, 2, threshold=0)
    with pytest.raises(UserError, match=r"router.least_noise is -1; expected at least 0"):
        NoisyTopK(8, 4, 2, least_noise=-1)
    with pytest.raises(UserError, match=r"ImportanceAndLoad needs the chances of a noisy router, Switch has none"):
        MoE(8, 8, experts=4, top_k=1, router=Switch, balance=ImportanceAndLoad())
