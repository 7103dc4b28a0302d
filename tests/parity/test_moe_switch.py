"""Top-1 routing, capacity and the losses against transformers' Switch; its experts are ReLU layers of two matrices."""

from functools import partial

import pytest
import torch
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    load_balancing_loss_func,
    router_z_loss_func,
)

from mm1.model.moe.capacity import Capacity
from mm1.model.moe.kernels import add_rows, take_rows
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Switch
from mm1.model.moe.routing import Places

WIDTH, EXPERTS, LENGTH = 16, 4, 24


def theirs(capacity):
    torch.manual_seed(0)
    settings = SwitchTransformersConfig(
        d_model=WIDTH,
        d_ff=20,
        num_experts=EXPERTS,
        expert_capacity=capacity,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
    )
    block = SwitchTransformersSparseMLP(settings)
    torch.nn.init.normal_(block.router.classifier.weight, std=0.5)
    return block


def ours(block):
    router = Switch(WIDTH, EXPERTS, 1, jitter=0.0)
    router.load_state_dict({"weight": block.router.classifier.weight.detach()})
    return router


def through(experts, x_BTD, rows):
    """Our rows through their experts."""
    parts = take_rows(x_BTD.flatten(0, 1), rows).split(rows.counts_E.tolist())
    y_RD = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
    return add_rows(y_RD * rows.weights_R.unsqueeze(1), rows, x_BTD.shape[0] * x_BTD.shape[1]).view_as(x_BTD)


def inputs():
    return torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2)) + 0.2


PLACES = Places.of_text(torch.ones(1, LENGTH, dtype=torch.bool))


@pytest.mark.parametrize("factor", [1.0, 1.25, 4.0])
@pytest.mark.parametrize("pad", [False, True])
def test_outputs_and_gradients_with_what_is_dropped(factor, pad):
    room = -(-factor * LENGTH // EXPERTS)
    block = theirs(int(room))
    router, x = ours(block), inputs()
    wanted_x, found_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = block(wanted_x)
    routing = router(found_x, PLACES)
    kept = Capacity(factor, pad=pad)(routing, PLACES, EXPERTS, True).kept_MK
    assert factor > 1 or not kept.all()
    if not kept.all() and bool((wanted[0] != 0).any(-1).all()):
        pytest.skip("the Switch block of this release of transformers never drops anything")
    assert torch.equal((wanted[0] != 0).any(-1), kept.squeeze(1))
    rows = Capacity(factor, pad=pad)(routing, PLACES, EXPERTS, True).rows(EXPERTS)
    found = through(block.experts.values(), found_x, rows)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    weight = block.router.classifier.weight
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), weight, retain_graph=True)
    (found_grad,) = torch.autograd.grad(found.square().sum(), router.weight, retain_graph=True)
    torch.testing.assert_close(found_grad, wanted_grad, atol=1e-6, rtol=1e-5)
    wanted.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(found_x.grad, wanted_x.grad, atol=1e-6, rtol=1e-5)


def test_both_losses():
    block = theirs(LENGTH)
    layer = MoE(WIDTH, 8, experts=EXPERTS, top_k=1, router=partial(Switch, jitter=0.0))
    layer.router.load_state_dict({"weight": block.router.classifier.weight.detach()})
    for expert in layer.experts.parameters():
        torch.nn.init.zeros_(expert)
    x = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    _, stats = layer(x, Places.of_text(torch.ones(3, LENGTH, dtype=torch.bool)))
    logits = block.router.classifier(x)
    tokens = 3 * LENGTH
    torch.testing.assert_close(stats.z / tokens, router_z_loss_func(logits).detach())
    balance = load_balancing_loss_func(logits.softmax(-1), logits.argmax(-1)).detach()
    torch.testing.assert_close(stats.balance / tokens, balance)
