"""What must hold of the decoder's options whatever the weights: windows, caches, packing, first values, refusals."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from mm1.batch import IMAGE
from mm1.errors import UserError
from mm1.model.attention import document_mask, same_document
from mm1.model.decoder import Decoder
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import TopK
from mm1.model.moe.routing import Places

OPEN_MODELS = {
    "llama": {"head_width": 12, "attention_bias": "all", "rope": ("Llama3Rope", {"factor": 4.0})},
    "yarn": {"rope": ("YarnRope", {"factor": 4.0})},
    "mistral": {"window_tokens": 4},
    "qwen2": {"window_tokens": 3, "windowed_layers": [1], "attention_bias": "qkv"},
    "qwen3_moe": {"qk_norm": "head", "head_width": 6, "experts": 4},
    "olmo2": {"qk_norm": "full", "norm_place": "after"},
    "olmoe": {"qk_norm": "full", "clip_qkv": 0.5, "experts": 4, "window_tokens": 5},
}


@pytest.fixture
def open_model(model):
    """A model with the options of one of OPEN_MODELS; its norms and biases are random."""

    def make(name, **more):
        options = OPEN_MODELS[name] | more
        if "rope" in options:
            kind, numbers = options["rope"]
            options["rope"] = {"class_path": f"mm1.model.rope.{kind}", "init_args": numbers | {"original_positions": 8}}
        mm1 = model(**options).eval()
        with torch.no_grad():
            for index, parameter in enumerate(p for p in mm1.decoder.parameters() if p.dim() == 1):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        return mm1

    return make


def test_the_window_is_the_drawing():
    drawing = """
        x.....
        xx....
        .xx...
        ..xx..
        ....x.
        .....x"""
    expected = torch.tensor([[mark == "x" for mark in line] for line in drawing.split()])
    assert torch.equal(document_mask(torch.tensor([[1, 1, 1, 1, 2, 0]]), window=2)[0, 0], expected)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), window=st.none() | st.integers(1, 9))
def test_the_gpus_rule_is_the_mask(lengths, window):
    """The rule that a block mask is made of, asked for every pair; the padding stands on both sides."""
    numbers = torch.tensor([0, *range(1, len(lengths) + 1), 0])
    segments = numbers.repeat_interleave(torch.tensor([2, *lengths, 3]))[None]
    tokens = segments.shape[1]
    asked = create_mask(same_document(segments, window), 1, None, tokens, tokens, device="cpu")
    assert torch.equal(asked, document_mask(segments, window))


@pytest.mark.parametrize("name", OPEN_MODELS)
@torch.no_grad()
def test_cached_decoding_equals_reading_all_at_once(open_model, name):
    """Rows of 10 and 15 positions, padded on the left, one with a picture; 11 at once, then one by one."""
    mm1 = open_model(name)
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 64, (2, 15), generator=g)
    tokens[1, 1:5] = IMAGE
    segments = torch.ones_like(tokens)
    segments[0, :5] = 0
    positions = (segments.cumsum(1) - 1).clamp(min=0)
    x = mm1.embed(tokens, mm1.encode_images(torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=g)))
    expected = mm1.decoder(x, segments, positions).hidden_BTD
    cache = mm1.decoder.new_cache(rows=2, tokens=20)
    parts = [slice(0, 11), *(slice(step, step + 1) for step in range(11, 15))]
    found = [mm1.decoder(x[:, p], segments[:, p], positions[:, p], cache).hidden_BTD for p in parts]
    valid = segments > 0
    assert torch.allclose(torch.cat(found, dim=1)[valid], expected[valid], atol=1e-5)
    alone = mm1.decoder(x[:1, 5:], segments[:1, 5:], positions[:1, 5:]).hidden_BTD
    assert torch.allclose(alone[0], expected[0, 5:], atol=1e-5)


@pytest.mark.parametrize("name", [*OPEN_MODELS, "dynamic"])
@torch.no_grad()
def test_packed_documents_are_read_as_if_alone(open_model, packed, documents, name):
    """Among them a stretched model whose base depends on the length of a document."""
    mm1 = open_model("yarn", rope=("DynamicRope", {"factor": 4.0})) if name == "dynamic" else open_model(name)
    row = packed([documents], 50, 0)
    hidden, start, pictures = mm1(row).hidden_BTD, 0, 0
    for document in documents:
        alone = packed([[document]], len(document), 0)
        images = len(alone.images_ICHW)
        alone = alone.with_images(row.images_ICHW[pictures : pictures + images])
        place = slice(start, start + len(document))
        assert torch.allclose(mm1(alone).hidden_BTD[0], hidden[0, place], atol=1e-5)
        start, pictures = place.stop, pictures + images


@torch.no_grad()
def test_a_window_that_covers_every_document_is_none(model, batch):
    step = batch()
    longest = int(step.positions_BT.max()) + 1
    expected = model()(step).hidden_BTD
    assert torch.equal(model(window_tokens=longest)(step).hidden_BTD, expected)
    assert not torch.allclose(model(window_tokens=longest // 2)(step).hidden_BTD, expected, atol=1e-3)


@torch.no_grad()
def test_a_window_of_one_layer_reaches_so_far_and_no_further(model):
    """One layer and a window of 4: the last position depends on itself and on the three before it."""
    decoder = model(layers=1, moe_every=1, window_tokens=4).decoder
    x, segments, positions = torch.randn(1, 9, 32), torch.ones(1, 9, dtype=torch.int64), torch.arange(9)[None]
    expected = decoder(x, segments, positions).hidden_BTD[0, -1]
    for place in range(8):
        changed = x.clone()
        changed[0, place] += 1
        same = torch.equal(decoder(changed, segments, positions).hidden_BTD[0, -1], expected)
        assert same == (place < 5), place


@torch.no_grad()
def test_a_clip_at_infinity_is_none(model, batch):
    step = batch()
    expected = model()(step).hidden_BTD
    assert torch.equal(model(clip_qkv=math.inf)(step).hidden_BTD, expected)
    assert not torch.allclose(model(clip_qkv=0.1)(step).hidden_BTD, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["olmoe", "qwen2"])
def test_recomputing_layers_changes_no_gradient(open_model, batch, name):
    gradients = []
    for checkpointing in (False, True):
        mm1 = open_model(name, checkpointing=checkpointing).train()
        mm1.losses(batch()).cross_entropy.backward()
        gradients.append({path: parameter.grad for path, parameter in mm1.decoder.named_parameters()})
    assert len(gradients[0]) > 20
    for path, expected in gradients[0].items():
        assert torch.allclose(gradients[1][path], expected, atol=1e-5), path


@pytest.mark.parametrize("name", ["olmo2", "qwen3_moe"])
@torch.no_grad()
def test_normed_queries_keep_the_type_of_values_under_autocast(open_model, batch, name):
    mm1, step = open_model(name), batch()
    attention = mm1.decoder.layers[0].attention
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mm1(step).hidden_BTD
        heads = [attention._heads(p, n, found) for p, n in ((attention.q, attention.q_norm), (attention.v, None))]
    assert {head.dtype for head in heads} == {torch.bfloat16}
    expected = mm1(step).hidden_BTD
    assert (found.float() - expected).norm() < 0.1 * expected.norm()


def test_new_parameters_start_as_their_kind_does(model):
    mm1 = model(attention_bias="all", qk_norm="full", norm_place="after", head_width=12)
    attention = mm1.decoder.layers[1].attention
    for name in "qkvo":
        assert getattr(attention, name).bias.abs().max() == 0
    for norm, width in ((attention.q_norm, 48), (attention.k_norm, 24)):
        assert torch.equal(norm.weight, torch.ones(width))
    assert attention.q.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert attention.o.weight.std().item() == pytest.approx((2 * 2 * 48) ** -0.5, rel=0.1)
    plain = model(head_width=12).decoder.layers[1].attention
    assert torch.equal(attention.q.weight, plain.q.weight)


def test_weights_of_the_chosen_experts_are_as_the_softmax_left_them():
    layer = MoE(8, 12, experts=4, router=partial(TopK, renormalise=False), expert_width=6)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    assert layer.experts.gate_up.shape == (4, 12, 8)
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    choice = layer.router(x, Places.of_text(torch.ones(1, 5, dtype=torch.bool))).choice
    expected = (x @ layer.router.weight.T).softmax(-1).topk(2).values
    assert torch.allclose(choice.weights_MK, expected[0], atol=1e-6)


def test_dense_layers_stay_dense(model):
    layers = model(experts=4, layers=6, moe_every=2, dense_layers=[3]).decoder.layers
    assert [isinstance(layer.ffn, MoE) for layer in layers] == [False, True, False, False, False, True]


def sparse(width, ffn_width):
    return MoE(width, ffn_width, experts=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_width": 7}, r"init_args.head_width is 7; expected an even number of at least 2$"),
        ({"head_width": 0}, r"init_args.head_width is 0; expected an even number of at least 2$"),
        ({"kv_heads": 0}, r"init_args.kv_heads is 0; expected at least 1$"),
        ({"clip_qkv": 0.0}, r"init_args.clip_qkv is 0.0; expected a number above 0, or null$"),
        ({"clip_qkv": math.nan}, r"init_args.clip_qkv is nan; expected a number above 0, or null$"),
        ({"window_tokens": 0}, r"init_args.window_tokens is 0; expected at least 1$"),
        ({"windowed_layers": [0]}, r"windowed_layers without a window_tokens; expected both or none \(.*\)$"),
        (
            {"window_tokens": 4, "windowed_layers": [0, 3]},
            r"windowed_layers names layer 3 of 3; expected 0 to 2 \(model.decoder.init_args.windowed_layers\)$",
        ),
        (
            {"moe": sparse, "dense_layers": [-1]},
            r"dense_layers names layer -1 of 3; expected 0 to 2 \(model.decoder.init_args.dense_layers\)$",
        ),
        (
            {"moe": sparse, "dense_layers": [1]},
            r"dense_layers \[1\] leave none of 3 layers sparse at moe_every=2; expected one at least \(.*\)$",
        ),
        (
            {"moe": lambda width, ffn_width: MoE(width, ffn_width, experts=4, expert_width=0)},
            r"expert_width is 0; expected at least 1$",
        ),
    ],
)
def test_impossible_options_are_refused_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        Decoder(8, **({"width": 32, "layers": 3, "heads": 4, "ffn_width": 8} | options))


def yarn(**numbers):
    return {"rope": {"class_path": "mm1.model.rope.YarnRope", "init_args": numbers}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_bias": "some"}, "attention_bias"),
        ({"norm_place": "between"}, "norm_place"),
        (yarn(factor=0.5, original_positions=8), "init_args.rope.init_args.factor is 0.5; expected at least 1$"),
        (yarn(factor=2.0), "original_positions"),
    ],
)
def test_a_yaml_with_impossible_options_is_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        model(**options)
