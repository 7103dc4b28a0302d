"""Experts that choose: what they take, that padding is nobody's, and when the future is seen."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mm1.errors import UserError
from mm1.model.decoder import Decoder
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import ExpertChoice, TopK, expert_choice
from mm1.model.moe.routing import Places

X = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(2))
TEXT = Places.of_text(torch.ones(3, 12, dtype=torch.bool))


def itself(tensor):
    return tensor


def filled(layer):
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
    for router in (part for part in layer.modules() if isinstance(part, ExpertChoice)):
        router.reset()
    return layer


def moe(top_k=2, **options):
    return filled(MoE(8, 12, experts=4, top_k=top_k, router=lambda *sizes: ExpertChoice(*sizes, **options)))


def test_every_expert_takes_its_best_tokens_of_each_row():
    layer = moe()
    y, stats = layer(X, TEXT)
    shares = (X @ layer.router.weight.T).softmax(-1)
    outputs = torch.stack([layer.experts.down[e] @ _inner(layer, e, X) for e in range(4)])
    expected = torch.zeros(3, 12, 8)
    for row in range(3):
        for expert in range(4):
            for token in shares[row, :, expert].topk(6).indices:  # 12 tokens * 2 / 4 experts
                expected[row, token] += shares[row, token, expert] * outputs[expert, row, :, token]
    assert torch.allclose(y, expected, atol=1e-5)
    assert stats.load_LE.tolist() == [[18.0] * 4]


def _inner(layer, expert, x):
    gate, up = (layer.experts.gate_up[expert] @ x.mT).chunk(2, dim=-2)
    return torch.nn.functional.silu(gate) * up


def test_a_batch_is_one_group_if_so_wished():
    layer = moe(group="batch")
    shares = (X @ layer.router.weight.T).softmax(-1).flatten(0, 1)
    hot = layer.router(X, TEXT).choice.hot(36, 4)
    assert all(
        set(hot[:, e].nonzero().flatten().tolist()) == set(shares[:, e].topk(18).indices.tolist()) for e in range(4)
    )


@pytest.mark.parametrize("group", ["row", "batch"])
def test_padding_is_never_taken_and_makes_no_room(group):
    layer = moe(group=group)
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[:, 7:] = False
    y, stats = layer(X, Places.of_text(valid))
    alone, alone_stats = layer(X[:, :7], Places.of_text(valid[:, :7]))
    assert torch.allclose(y[:, :7], alone, atol=1e-6)
    assert (y[:, 7:] == 0).all()
    assert torch.equal(stats.load_LGE, alone_stats.load_LGE)
    empty, _ = layer(X, Places.of_text(torch.zeros_like(valid)))
    assert (empty == 0).all()


def test_experts_that_take_all_tokens_are_the_soft_mixture():
    layer = moe(top_k=4)
    soft = MoE(8, 12, experts=4, top_k=4, router=TopK)
    soft.load_state_dict({k: layer.state_dict()[k] for k in soft.state_dict()})
    assert torch.allclose(layer(X, TEXT)[0], soft(X, TEXT)[0], atol=1e-5)


def test_a_failed_expert_takes_nobody():
    layer = moe()
    layer.router.fail([1])
    assert layer(X, TEXT)[1].load_LE.tolist() == [[18, 0, 18, 18]]


def test_thresholds_follow_the_last_token_taken_and_then_nobody_sees_the_future():
    layer = moe().train()
    shares = (X @ layer.router.weight.T).softmax(-1)
    last = shares.topk(6, dim=1).values[:, -1].mean(0)
    layer(X, TEXT)
    layer.router.after_step(torch.zeros(4), itself)
    assert torch.allclose(layer.router.threshold_E, last)
    layer(X * 0, TEXT)
    layer.router.after_step(torch.zeros(4), itself)
    assert torch.allclose(layer.router.threshold_E, 0.99 * last + 0.01 * 0.25)
    layer(X, Places.of_text(torch.zeros(3, 12, dtype=torch.bool)))  # all padding tells nothing
    layer.router.after_step(torch.zeros(4), itself)
    assert torch.allclose(layer.router.threshold_E, 0.99 * last + 0.01 * 0.25)
    assert "router.threshold_E" in layer.state_dict()
    assert not layer.causal

    layer.eval()
    assert layer.causal
    hot = layer.router(X, TEXT).choice.hot(36, 4).view(3, 12, 4)
    assert torch.equal(hot.bool(), shares >= layer.router.threshold_E)
    y, _ = layer(X, TEXT)
    for end in (1, 5, 12):
        places = Places.of_text(torch.ones(3, end, dtype=torch.bool))
        assert torch.allclose(layer(X[:, :end], places)[0], y[:, :end], atol=1e-6)


def test_in_training_the_future_is_seen():
    layer = moe().train()
    changed = X.clone()
    changed[:, -1] += 5
    assert not torch.allclose(layer(X, TEXT)[0][:, :-1], layer(changed, TEXT)[0][:, :-1], atol=1e-3)


def test_a_recomputed_layer_measures_once():
    layer = moe().train()
    layer(X, TEXT)
    once = layer.router.last_E.clone()
    y, _ = checkpoint(layer, X.clone().requires_grad_(), TEXT, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(layer.router.last_E, once)


@pytest.mark.parametrize("at_inference", ["threshold", "batch"])
def test_only_thresholds_generate_and_token_by_token_equals_at_once(at_inference):
    decoder = filled(
        Decoder(
            16,
            width=8,
            layers=2,
            heads=2,
            ffn_width=12,
            moe=lambda *sizes: MoE(
                *sizes, experts=4, router=lambda *inner: ExpertChoice(*inner, at_inference=at_inference)
            ),
        )
    )
    decoder.layers[1].ffn.router.threshold_E.fill_(0.25)
    with pytest.raises(UserError, match="looks beyond the tokens so far, so it cannot generate"):
        decoder.train().new_cache(1, 12)
    decoder.eval()
    if at_inference == "batch":
        with pytest.raises(UserError, match="looks beyond the tokens so far, so it cannot generate"):
            decoder.new_cache(3, 12)
        return
    segments, positions = torch.ones(3, 12, dtype=torch.int64), torch.arange(12).expand(3, 12)
    whole = decoder(X, segments, positions).hidden_BTD
    cache = decoder.new_cache(3, 12)
    parts = [decoder(X[:, t : t + 1], segments[:, :1], positions[:, t : t + 1], cache).hidden_BTD for t in range(12)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_the_warning_comes_once(caplog):
    expert_choice._warn.cache_clear()
    for _ in range(3):
        ExpertChoice(8, 4, 2)
    assert caplog.text.count("sees the future") == 1
