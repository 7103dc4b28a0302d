"""The fast path of a sparse layer on a GPU: right, deterministic, whole for the compiler, and never waiting for it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mm1.model.moe.capacity import Capacity
from mm1.model.moe.kernels import mixed_linear
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Switch
from mm1.model.moe.routing import Places
from mm1.model.recompute import CHOICE, recomputed
from tests.mm1.model.moe.reference import OPTIONS, concrete, moe, tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WIDTH, FFN, EXPERTS = 128, 192, 8
WAYS = [
    {},
    {"top_k": 1, "router": partial(Switch, jitter=0.0)},
    {"top_k": 5},
    {"capacity": Capacity(1.0)},
    {"capacity": Capacity(1.0, pad=True)},
]


def pair(tokens=(2, 700), **options):
    """A layer in fp32 on the CPU and the same in bf16 on the GPU, with inputs that bf16 holds exactly."""
    g = torch.Generator().manual_seed(0)
    slow = MoE(WIDTH, FFN, experts=EXPERTS, **options)
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=g) * 0.1).bfloat16())
    fast = MoE(WIDTH, FFN, experts=EXPERTS, **options).cuda()
    fast.load_state_dict(slow.state_dict())
    fast.experts.bfloat16()
    x = torch.randn(*tokens, WIDTH, generator=g).bfloat16()
    grad = torch.randn(*tokens, WIDTH, generator=g).bfloat16()
    valid = torch.ones(tokens, dtype=torch.bool)
    valid[:, -9:] = False
    return slow, fast, x, grad, Places.of_text(valid), Places.of_text(valid.cuda())


def run(layer, x, grad, places):
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y, stats = layer(x, places)
    torch.autograd.backward([y, stats.loss / y.shape[1]], [grad, torch.ones_like(stats.loss)])
    found = {"y": y, "x": x.grad, "loss": stats.loss, "load": stats.load_LGE}
    return {**found, **{name: parameter.grad for name, parameter in layer.named_parameters()}}


def error(found, expected):
    return ((found.float().cpu() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9)).item()


def test_scores_are_far_more_exact_than_in_bf16():
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(3, 500, 2048, device="cuda", generator=g).bfloat16().requires_grad_()
    weight = (torch.randn(64, 2048, device="cuda", generator=g) * 0.02).requires_grad_()
    grad = torch.randn(3, 500, 64, device="cuda", generator=g)
    wide, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = wide @ wide_weight.T
    expected.backward(grad.double())
    found = mixed_linear(x, weight)
    found.backward(grad)
    errors = [error(found, expected.cpu()), error(weight.grad, wide_weight.grad.cpu()), error(x.grad, wide.grad.cpu())]
    in_fp32 = error(x.detach().float() @ weight.detach().T, expected.detach().cpu())
    print("errors of scores, of gradients", errors, "and of scores in fp32", in_fp32)
    assert errors[0] < 1e-5
    assert errors[1] < 1e-5
    assert errors[2] < 3e-3  # in bf16


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fast_path_computes_what_the_loop_does(options, compiled):
    slow, fast, x, grad, places, places_gpu = pair(**options)
    expected = run(slow, x.float(), grad.float(), places)
    if compiled:
        torch._dynamo.reset()
        fast.compile(fullgraph=True)
    found = run(fast, x.cuda(), grad.cuda(), places_gpu)
    assert torch.equal(found["load"].cpu(), expected["load"])
    for name, value in expected.items():
        assert error(found[name], value) < 1e-2, name


def test_an_expert_that_nobody_chooses_has_a_zero_gradient():
    slow, fast, x, grad, places, places_gpu = pair()
    for layer in (slow, fast):
        layer.router.fail([3, 4])
    expected, found = run(slow, x.float(), grad.float(), places), run(fast, x.cuda(), grad.cuda(), places_gpu)
    assert found["experts.down"][3].abs().max() == found["experts.gate_up"][4].abs().max() == 0
    for name, value in expected.items():
        assert error(found[name], value) < 1e-2, name


def test_two_runs_agree_to_the_bit():
    _, fast, x, grad, _, places = pair()
    first, second = (run(fast, x.cuda(), grad.cuda(), places) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("options", [{}, {"capacity": Capacity(1.25)}])
def test_a_step_never_waits_for_the_gpu(options):
    _, fast, x, grad, _, places = pair(**options)
    x, grad = x.cuda(), grad.cuda()
    run(fast, x, grad, places)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(fast, x, grad, places)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", concrete())
def test_no_router_waits_for_the_gpu(kind):
    for options in OPTIONS.get(kind, [{}]):
        router = moe(kind, router=options).router.cuda()
        x = tokens(2, 6, router.width).cuda().requires_grad_()
        places = Places.of_text(torch.ones(2, 6, dtype=torch.bool, device="cuda"))
        places = replace(places, sources=len(options.get("tasks", ["all"])))

        def step(router=router, x=x, places=places):
            routing = router(x, places)
            rows = routing.choice.rows(router.experts)
            (rows.weights_R.square().sum() + routing.logits_BTE.square().sum()).backward()

        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_recomputing_a_layer_gives_the_same_gradients():
    _, fast, x, grad, _, places = pair()
    expected = run(fast, x.cuda(), grad.cuda(), places)
    again = recomputed(fast, CHOICE)
    inputs = x.cuda().requires_grad_()
    fast.zero_grad()
    y, stats = again(inputs, places)
    torch.autograd.backward([y, stats.loss / y.shape[1]], [grad.cuda(), torch.ones_like(stats.loss)])
    assert torch.equal(inputs.grad, expected["x"])
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name
