"""Sub-tokens through a mixture: what it is equal to, what it costs, and how many experts a token meets."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.count import flops, parameters
from mm1.model.moe.layer import MoE
from mm1.model.moe.multi_head import MultiHeadMoE, equal_flops, equal_parameters
from mm1.model.moe.routing import Places


def filled(layer):
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return layer


def tokens(width=24):
    return torch.randn(2, 10, width, generator=torch.Generator().manual_seed(2))


TEXT = Places.of_text(torch.ones(2, 10, dtype=torch.bool))


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_one_head_between_identities_is_the_plain_mixture():
    plain = filled(MoE(24, 16, experts=4, top_k=2))
    layer = MultiHeadMoE(24, 16, moe=partial(MoE, experts=4, top_k=2), heads=1, match="none")
    layer.inner.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for square in (layer.head, layer.merge):
            square.weight.copy_(torch.eye(24))
            square.bias.zero_()
    y, stats = layer(tokens(), TEXT)
    expected, wanted = plain(tokens(), TEXT)
    assert torch.equal(y, expected)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(vars(stats).values(), vars(wanted).values(), strict=True)
    )


def test_each_part_of_a_token_is_routed_for_itself():
    layer = filled(MultiHeadMoE(24, 16, moe=partial(MoE, experts=8, top_k=1), heads=3, match="none"))
    y, stats = layer(tokens(), TEXT)
    parts = layer.head(tokens()).unflatten(-1, (3, 8))
    answers, _ = layer.inner(parts.flatten(0, 1), Places.of_text(torch.ones(20, 3, dtype=torch.bool)))
    assert torch.allclose(y, layer.merge(answers.view(2, 10, 24)), atol=1e-5)
    assert stats.load_LE.sum() == 20 * 3
    assert stats.together_LEE[0].diagonal().count_nonzero() > 3


def test_losses_count_a_token_once_however_many_heads():
    layer = filled(MultiHeadMoE(24, 16, moe=partial(MoE, experts=8), heads=4, match="none"))
    torch.nn.init.zeros_(layer.inner.router.weight)
    _, stats = layer(tokens(), TEXT)
    assert torch.allclose(stats.balance / 20, torch.tensor(1.0))
    assert torch.allclose(stats.z / 20, torch.tensor(8.0).log() ** 2)
    assert torch.allclose(stats.loss, 0.01 * stats.balance + 0.001 * stats.z)


def test_published_sizes():
    """arXiv 2411.16205, section 4: width 768, 8 experts of 2048, top-1; the nearest whole numbers are 41 and 93."""
    assert equal_flops(768, 2048, 8, 1, heads=2, wanted=2, multiple=8) == (768, 40)
    assert equal_flops(768, 2048, 8, 1, heads=3, wanted=3, multiple=8) == (512, 96)
    assert equal_flops(768, 2048, 8, 1, heads=3, wanted=3) == (512, 93)


@pytest.mark.parametrize(("experts", "beta"), [(8, 31 / 32), (32, 127 / 128)])
def test_the_first_versions_beta(experts, beta):
    """With F = 8 d / 3, which is 4 d of two matrices, f is 4 beta h d of two matrices."""
    assert equal_parameters(768, 2048, experts, 4) == pytest.approx(beta * 4 * 2048, rel=1e-3)


@pytest.mark.parametrize("heads", [2, 4])
def test_the_first_version_has_the_parameters_of_the_plain_mixture(heads):
    make = partial(MoE, experts=8, top_k=2, expert_width=320)
    with torch.device("meta"):
        plain, layer = make(96, 1), MultiHeadMoE(96, 1, moe=make, heads=heads, match="parameters")
    assert numel(layer) == pytest.approx(numel(plain), rel=0.01)
    assert (layer.inner.experts.count, layer.inner.router.top_k) == (8, 2)
    assert layer.multiplied > 1.5 * plain.multiplied


@pytest.mark.parametrize(("heads", "top_k"), [(2, None), (3, None), (4, 2), (1, 2)])
def test_the_second_version_has_parameters_and_multiplications_of_the_plain_mixture(heads, top_k):
    make = partial(MoE, experts=16, top_k=2)
    with torch.device("meta"):
        plain, layer = make(768, 2048), MultiHeadMoE(768, 2048, moe=make, heads=heads, top_k=top_k)
    assert numel(layer) == pytest.approx(numel(plain), rel=0.01)
    assert layer.multiplied == pytest.approx(plain.multiplied, rel=0.01)
    assert layer.inner.router.top_k == (top_k or heads)
    visited = heads * layer.inner.router.top_k
    one = numel(layer.inner.experts) // layer.inner.experts.count
    assert layer.idle == one * (layer.inner.experts.count - visited)


def test_flops_equal_what_torch_counts(config, batch):
    tree = config(experts=8, kv_heads=4)
    plain = tree["init_args"]["decoder"]["init_args"]["moe"]
    tree["init_args"]["decoder"]["init_args"]["moe"] = {
        "class_path": "mm1.model.moe.multi_head.MultiHeadMoE",
        "init_args": {"moe": plain, "heads": 2, "match": "none"},
    }

    def built(value):
        model = build(value)
        model.to_empty(device="cpu")
        model.init_weights(0)
        return model.eval()

    step = batch()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stats = built(tree)(step).router
    dense = copy.deepcopy(tree)
    del dense["init_args"]["decoder"]["init_args"]["moe"]
    with FlopCounterMode(display=False) as without, torch.no_grad():
        built(dense)(step)
    ours = flops(built(tree)).position - flops(built(dense)).position
    places = step.tokens_BT.numel()  # torch counts padding too, and what statistics are multiplied for
    _, groups, gauges = stats.gauges_LGN.shape
    measured = 2 * (2 * places) * (groups * (8 + gauges) + 8 * 8)
    assert ours * places == counter.get_total_flops() - without.get_total_flops() - measured
    assert parameters(built(tree)).active == parameters(built(tree)).total - built(tree).decoder.layers[1].ffn.idle


def test_init_fills_it_and_merge_is_an_output_onto_the_residual(config):
    tree = config(experts=8, width=64)
    decoder = tree["init_args"]["decoder"]["init_args"]
    inner = decoder["moe"]
    decoder["moe"] = {
        "class_path": "mm1.model.moe.multi_head.MultiHeadMoE",
        "init_args": {"moe": inner, "match": "none"},
    }
    model = build(tree)
    model.to_empty(device="cpu")
    model.init_weights(0)
    layer = model.decoder.layers[1].ffn
    assert layer.merge.weight.std().item() == pytest.approx((64 * 2 * 2) ** -0.5, rel=0.05)
    assert layer.head.weight.std().item() == pytest.approx((64 * 2) ** -0.5, rel=0.05)
    assert layer.inner.experts.down.std().item() == pytest.approx(48**-0.5, rel=0.05)
    assert layer.merge.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("width", "options", "message"),
    [
        (24, {"heads": 5}, "width 24 over 5 heads; expected a divisor of the width"),
        (24, {"heads": 0}, "heads is 0; expected at least 1"),
        (96, {"heads": 2}, "experts of 16 at width 96 cost less than a head and a merge layer"),
        (24, {"match": "none", "top_k": 2}, "top_k beside match: none"),
    ],
)
def test_what_cannot_be_is_refused(width, options, message):
    with pytest.raises(UserError, match=message):
        MultiHeadMoE(width, 16, moe=partial(MoE, experts=4, top_k=1), **options)
