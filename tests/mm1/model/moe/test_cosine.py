"""X-MoE's router compares directions, in a small space, at a temperature that is learned."""

import pytest
import torch

from mm1.errors import UserError
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Cosine
from mm1.model.moe.routing import Places

X = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(2))
TEXT = Places.of_text(torch.ones(2, 10, dtype=torch.bool))


def filled(**options):
    router = Cosine(8, 6, 2, **options)
    for index, parameter in enumerate(router.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    router.reset()
    return router


def test_shares_are_a_softmax_of_cosines():
    router = filled()
    assert router.projection.shape == (3, 8)
    routing = router(X, TEXT)
    for at, x in enumerate(X.flatten(0, 1)):
        cosines = torch.stack(
            [torch.cosine_similarity(router.projection @ x, vector, dim=0) for vector in router.vectors]
        )
        weights, experts = (cosines / 0.3).softmax(0).topk(2)
        assert torch.equal(routing.choice.experts_MK[at], experts)
        assert torch.allclose(routing.choice.weights_MK[at], weights, atol=1e-6)
    assert torch.allclose(filled(renormalise=True)(X, TEXT).choice.weights_MK.sum(-1), torch.ones(20))


def test_with_the_other_gate_each_expert_answers_for_itself():
    softmax, sigmoid = filled(temperature=0.07)(X, TEXT), filled(gate="sigmoid")(X, TEXT)
    assert torch.equal(sigmoid.logits_BTE, softmax.logits_BTE)
    assert torch.equal(sigmoid.choice.experts_MK, softmax.choice.experts_MK)
    best = sigmoid.logits_BTE.flatten(0, 1).gather(1, sigmoid.choice.experts_MK)
    assert torch.allclose(sigmoid.choice.weights_MK, best.sigmoid())
    assert torch.allclose(sigmoid.shares_BTE.sum(-1), torch.ones(2, 10))


def test_lengths_of_tokens_and_experts_do_not_matter():
    router, longer = filled(), filled()
    with torch.no_grad():
        longer.vectors.mul_(torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None])
    assert torch.allclose(longer(7 * X, TEXT).shares_BTE, router(X, TEXT).shares_BTE, atol=1e-6)


def test_the_temperature_is_learned_held_up_and_unknown_to_the_balance_loss():
    router = filled()
    before = router(X, TEXT)
    before.choice.weights_MK.sum().backward()
    assert router.temperature.grad.abs() > 0
    with torch.no_grad():
        router.temperature.fill_(-5.0)
    after = router(X, TEXT)
    assert torch.allclose(after.logits_BTE, before.logits_BTE * 0.3 / 0.01, rtol=1e-4)
    assert torch.equal(after.shares_BTE, before.shares_BTE)


def test_balance_reaches_projection_and_experts():
    layer = MoE(8, 12, experts=6, router=lambda *sizes: filled())
    for parameter in layer.experts.parameters():
        torch.nn.init.normal_(parameter)
    _, stats = layer(X, TEXT)
    stats.loss.backward()
    assert layer.router.projection.grad.abs().max() > 0
    assert layer.router.vectors.grad.abs().max() > 0


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="space_width is 0; expected at least 1"):
        Cosine(8, 6, 2, space_width=0)
    with pytest.raises(UserError, match=r"temperature is 0.0; expected at least 0.01"):
        Cosine(8, 6, 2, temperature=0.0)
