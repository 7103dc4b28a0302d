"""The task decides: every token of a source visits the same experts, and the tasks' vectors learn."""

import pytest
import torch

from mm1.errors import UserError
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import ByTask
from mm1.model.moe.routing import Places

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
SOURCES = torch.tensor([[0, 0, 0, 2, 2, 2], [1, 1, 2, 2, 0, 0]])
VALID = torch.ones(2, 6, dtype=torch.bool)
PLACES = Places(VALID, ~VALID, SOURCES, 3)
TASKS = ["captions", "interleaved", "text"]


def moe():
    layer = MoE(8, 12, experts=6, top_k=2, router=lambda *sizes: ByTask(*sizes, tasks=TASKS))
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    return layer


def test_all_tokens_of_a_task_visit_the_same_experts_with_the_same_shares():
    router = moe().router
    choice = router(X, PLACES).choice
    best = (router.vectors @ router.weight.T).softmax(-1).topk(2)
    assert torch.equal(choice.experts_MK, best.indices[SOURCES.flatten()])
    shares = best.values / best.values.sum(-1, keepdim=True)
    assert torch.allclose(choice.weights_MK, shares[SOURCES.flatten()])
    assert len({tuple(row) for row in choice.experts_MK.tolist()}) > 1
    assert torch.equal(router(torch.randn_like(X), PLACES).choice.experts_MK, choice.experts_MK)


def test_loss_and_balance_reach_router_and_tasks():
    layer = moe()
    y, _ = layer(X, PLACES)
    y.square().sum().backward()
    assert layer.router.vectors.grad.abs().amax(1).gt(0).all()
    layer.zero_grad()
    layer(X, PLACES)[1].loss.backward()
    assert layer.router.weight.grad.abs().max() > 0


def test_a_batch_of_other_sources_is_refused():
    with pytest.raises(UserError, match="a batch of 1 sources for a router of the tasks captions, interleaved, text"):
        moe()(X, Places.of_text(VALID))


@pytest.mark.parametrize("tasks", [[], ["a", "a"]])
def test_tasks_without_names_of_their_own_are_refused(tasks):
    with pytest.raises(UserError, match="expected the names of the sources, each once"):
        ByTask(8, 4, 2, tasks=tasks)
