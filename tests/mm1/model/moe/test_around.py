"""A dense layer before or after the sparse one."""

import pytest
import torch
from torch.nn.functional import rms_norm

from mm1.model.build import build
from mm1.model.ffn import SwiGLU
from mm1.model.moe.around import Around
from mm1.model.moe.layer import MoE
from tests.mm1.model.moe.reference import text, tokens


def around(place):
    layer = Around(4, 6, moe=lambda width, ffn_width: MoE(width, ffn_width, experts=3), place=place)
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    return layer


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_each_layer_reads_what_those_before_it_made(place):
    layer, x = around(place), tokens(2, 5)
    stream = x
    if place != "after":
        stream = stream + layer.before(x)
    read = stream if place == "after" else rms_norm(stream, (4,), layer.before_norm.weight, 1e-5)
    y, wanted = layer.sparse(read, text(2, 5))
    stream = stream + y
    if place != "before":
        stream = stream + layer.after(rms_norm(stream, (4,), layer.after_norm.weight, 1e-5))
    found, stats = layer(x, text(2, 5))
    torch.testing.assert_close(found, stream - x, atol=1e-4, rtol=1e-4)
    assert torch.equal(stats.loss, wanted.loss)
    dense = sum(isinstance(part, SwiGLU) for part in layer.modules()) * 3 * 4 * 6
    assert layer.idle == layer.sparse.idle == 3 * 4 * 6
    assert layer.multiplied == layer.sparse.multiplied + dense


def test_outputs_onto_the_residual_begin_smaller_in_deeper_models(config):
    """Dense and sparse ones alike, where the layer stands among others."""
    tree = config(experts=4)
    moe = tree["init_args"]["decoder"]["init_args"]["moe"]
    tree["init_args"]["decoder"]["init_args"] |= {"layers": 8, "moe_every": 8}
    tree["init_args"]["decoder"]["init_args"]["moe"] = {
        "class_path": "mm1.model.moe.around.Around",
        "init_args": {"place": "both", "moe": moe},
    }
    model = build(tree)
    model.to_empty(device="cpu")
    model.init_weights(0)
    ffn = model.decoder.layers[7].ffn
    for down in (ffn.before.down.weight, ffn.after.down.weight, ffn.sparse.experts.down):
        assert down.std().item() == pytest.approx((2 * 8 * 48) ** -0.5, rel=0.1)
    assert torch.equal(ffn.before_norm.weight, torch.ones(32))
