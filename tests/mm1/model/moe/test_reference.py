"""Every router through the layer, in float64, against the definition and against finite differences."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import linear, silu

from mm1.model.moe.capacity import Capacity
from mm1.model.moe.losses import ImportanceAndLoad, LoadTimesShare
from mm1.model.moe.routers import ExpertChoice, GShard, STMoE, TopK, Topology
from mm1.model.moe.routing import Places
from tests.mm1.model.moe.reference import OPTIONS, answer, concrete, moe, text, tokens

WAYS = [(kind, options) for kind in concrete() for options in OPTIONS.get(kind, [{}])]
NAMES = [f"{kind.__name__}-{index}" for index, (kind, _) in enumerate(WAYS)]


def double(kind, options, **layer):
    balance = ImportanceAndLoad() if kind.noisy else LoadTimesShare("batch")
    layer = {"balance": balance, "balance_weight": 0.5, "z_weight": 0.1, **layer}
    return moe(kind, router=options, dtype=torch.float64, width=3, ffn_width=2, **layer)


def places():
    """Padding at the end of the second row, pictures, two sources."""
    valid = torch.tensor([[True] * 4, [True] * 3 + [False]])
    image = torch.tensor([[True, True, False, False], [False] * 4])
    return Places(valid, image, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), 2)


def test_no_router_is_left_out():
    assert {*concrete()} == {*OPTIONS}, "enter it in reference.py"


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_its_definition(kind, options, training):
    layer, x = double(kind, options).train(training), tokens(2, 4, 3, dtype=torch.float64)
    torch.manual_seed(1)
    choice = layer.router(x, places()).choice
    torch.manual_seed(1)
    assert torch.allclose(layer(x, places())[0], answer(layer, x, choice), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=NAMES)
def test_gradients_are_those_of_finite_differences(kind, options):
    layer = double(kind, options)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        torch.manual_seed(3)  # the same noise every time
        y, stats = functional_call(layer, dict(zip(names, parameters, strict=True)), (x, places()))
        return y, stats.loss

    inputs = (tokens(2, 4, 3, dtype=torch.float64), *(parameter.detach() for parameter in layer.parameters()))
    # all directions of all inputs would take minutes; a random one of each finds as much
    assert torch.autograd.gradcheck(run, [tensor.clone().requires_grad_() for tensor in inputs], fast_mode=True)


def reached(router):
    return max(parameter.grad.abs().max() for parameter in router.parameters() if parameter.grad is not None) > 1e-6


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=NAMES)
def test_losses_and_answers_reach_the_router(kind, options):
    for weights in ({"balance_weight": 1.0, "z_weight": 0.0}, {"balance_weight": 0.0, "z_weight": 1.0}):
        if kind is ExpertChoice and weights["balance_weight"]:
            continue  # balanced by construction: the loss is one whatever the shares
        layer = double(kind, options, **weights)
        torch.manual_seed(2)
        layer(tokens(2, 4, 3, dtype=torch.float64), places())[1].loss.backward()
        assert reached(layer.router), weights
    if options == {"weights": "even"}:
        return
    layer = double(kind, options)
    layer(tokens(2, 4, 3, dtype=torch.float64), places())[0].square().sum().backward()
    assert reached(layer.router)


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=NAMES)
@pytest.mark.parametrize("pad", [False, True])
def test_capacity_without_end_is_no_capacity(kind, options, pad):
    """Four experts and a factor of four: all tokens could go to one of them. Padding alone finds no room."""
    x, valid = tokens(2, 4, 3, dtype=torch.float64), places().valid_BT
    free, bound = (double(kind, options, capacity=capacity) for capacity in (None, Capacity(4.0, pad=pad)))
    found = []
    for layer in (free, bound):
        torch.manual_seed(5)
        y, stats = layer(x, places())
        stats.loss.backward(retain_graph=True)
        y[valid].square().sum().backward()
        found.append([y[valid], *(p.grad for p in layer.parameters()), stats.load_LGE, stats.gauges_LGN])
    for wanted, ours in zip(*found, strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [TopK])
def test_all_experts_are_the_soft_mixture_of_1991(kind):
    layer, x = moe(kind, experts=3, top_k=3, dtype=torch.float64), tokens(2, 5, dtype=torch.float64)
    shares = linear(x, layer.router.weight).softmax(-1)
    expected = 0
    for e in range(3):
        gate, up = linear(x, layer.experts.gate_up[e]).chunk(2, -1)
        expected = expected + shares[..., e : e + 1] * linear(silu(gate) * up, layer.experts.down[e])
    assert torch.allclose(layer(x, text(2, 5))[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in concrete() if kind not in (GShard, STMoE, Topology)])
def test_one_expert_is_the_dense_layer(kind):
    """The others need two."""
    layer = moe(kind, experts=1, top_k=1, router=OPTIONS[kind][0], dtype=torch.float64).eval()
    x = tokens(2, 5, dtype=torch.float64)
    gate, up = linear(x, layer.experts.gate_up[0]).chunk(2, -1)
    expected = linear(silu(gate) * up, layer.experts.down[0])
    assert torch.allclose(layer(x, text(2, 5, sources=2))[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options", "pad"), [(*way, False) for way in WAYS] + [(TopK, {}, True)], ids=[*NAMES, "TopK-padded"]
)
def test_routing_compiles_whole(kind, options, pad):
    """No value reaches the host, no shape depends on one: from the hidden states to sorted rows in one graph."""
    torch._dynamo.reset()
    layer, x = moe(kind, router=options), tokens(2, 8)
    layer.router.train()
    capacity, places = Capacity(1.25, pad=pad), text(2, 8, sources=2)

    def rows(x):
        routing = layer.router(x, places)
        balance = layer.balance(routing, routing.choice.hot(16, 4).unflatten(0, (2, 8)), places)
        return balance, capacity(routing, places, 4, True).rows(4)

    torch.manual_seed(0)
    wanted, wanted_rows = rows(x)
    torch.manual_seed(0)
    found, found_rows = torch.compile(rows, fullgraph=True, backend="eager")(x)
    assert torch.equal(found, wanted)
    assert torch.equal(found_rows.tokens_R, wanted_rows.tokens_R)
