"""Sizes and costs, against the published numbers and against torch's own counter."""

import copy
from dataclasses import replace

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mm1.model.build import build
from mm1.model.count import Counts, flops, parameters

# total with encoder and connector; active; decoder beside embeddings; of it active; its dense twin
SIZES = {
    "ablation_base": Counts(1_671_644_672, 1_671_644_672, 1_214_351_360, 1_214_351_360, 1_214_351_360),
    "3b": Counts(3_803_600_448, 3_803_600_448, 2_944_564_224, 2_944_564_224, 2_944_564_224),
    "7b": Counts(7_509_897_792, 7_509_897_792, 6_576_934_912, 6_576_934_912, 6_576_934_912),
    "30b": Counts(31_115_351_616, 31_115_351_616, 29_948_025_856, 29_948_025_856, 29_948_025_856),
    "3b_moe": Counts(65_638_585_920, 4_787_623_488, 64_779_549_696, 3_928_587_264, 2_944_564_224),
    "7b_moe": Counts(48_078_254_656, 8_819_569_216, 47_145_291_776, 7_886_606_336, 6_576_934_912),
}
# what MM1 says, in billions
PUBLISHED = {"ablation_base": 1.2, "3b": 2.9, "7b": 6.4, "30b": 30, "3b_moe": 64, "7b_moe": 47}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(model_configs, name):
    counts = parameters(build(model_configs / f"{name}.yaml"))
    assert counts == SIZES[name]
    tolerance = 0.03 if name == "7b" else 0.02  # a dense 6.4B cannot become 47B by the stated recipe, 6.58B does
    assert counts.non_embedding == pytest.approx(PUBLISHED[name] * 1e9, rel=tolerance)


def test_active_parameters_of_the_published_mixtures():
    assert SIZES["3b_moe"].active_non_embedding / 1e9 == pytest.approx(3.9, abs=0.05)
    assert SIZES["7b_moe"].active_non_embedding / 1e9 == pytest.approx(7.9, abs=0.05)


@pytest.mark.parametrize("name", ["tiny", "3b", "7b"])
def test_a_mixture_is_its_dense_twin_with_experts(model_configs, name):
    dense = yaml.safe_load((model_configs / f"{name}.yaml").read_text())
    sparse = yaml.safe_load((model_configs / f"{name}_moe.yaml").read_text())
    assert parameters(build(sparse)).dense_twin == parameters(build(dense)).non_embedding
    bare = copy.deepcopy(sparse)
    for key in ("moe", "moe_every"):
        del bare["init_args"]["decoder"]["init_args"][key]
    assert bare == dense


def test_a_picture_of_the_published_encoder_costs_1007_gigaflops(model_configs):
    assert flops(build(model_configs / "3b.yaml")).vision / 1e9 == pytest.approx(1007, rel=1e-3)


def test_flops_of_a_position_are_twice_the_active_parameters(model_configs):
    mm1 = build(model_configs / "3b_moe.yaml")
    assert flops(mm1).position == pytest.approx(2 * parameters(mm1).active_non_embedding, rel=1e-3)


def test_flops_equal_what_torch_counts(model, batch):
    """On one document a row, where torch counts all T x T scores and the model needs half of them."""
    mm1, step = model(kv_heads=4).eval(), batch()
    step = replace(step, segments_BT=torch.ones_like(step.segments_BT), positions_BT=torch.arange(40).expand(2, 40))
    kernel = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the CPU's flash kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad(), kernel:
        mm1.losses(step)
    cost = flops(mm1)
    masked = 2 * (40 * 40 - 40 * 41 // 2) * cost.key * len(mm1.decoder.layers)
    assert float(cost.forward(step)) + masked == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_training_costs_three_forward_passes_and_a_frozen_encoder_one(model, batch):
    mm1, step = model(), batch()
    cost = flops(mm1)
    assert float(cost.training(step)) == pytest.approx(3 * float(cost.forward(step)))
    assert float(cost.forward(step) - cost.forward(step, encoder=False)) == len(step.images_ICHW) * cost.vision
    mm1.vision.requires_grad_(False)
    frozen = flops(mm1)
    saved = float(cost.training(step) - frozen.training(step))
    assert saved == pytest.approx(2 * len(step.images_ICHW) * cost.vision)


def test_options_of_open_models_are_counted(model):
    """A layer of width 32, 4 heads of 12 on 2 key-value heads, experts of 20: worked by hand, and against numel."""
    moe = {"class_path": "mm1.model.moe.layer.MoE", "init_args": {"experts": 6, "top_k": 3, "expert_width": 20}}
    options = {"head_width": 12, "attention_bias": "all", "qk_norm": "full", "moe_every": 1, "dense_layers": [0]}
    decoder = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_width": 48, "moe": moe, **options}
    mm1 = model(**decoder, experts=6)
    attention = (32 * 48 + 48) + 2 * (32 * 24 + 24) + (48 * 32 + 32) + 48 + 24  # q, k and v, o, norms
    dense, expert, router = 3 * 32 * 48, 3 * 32 * 20, 6 * 32
    counts = parameters(mm1)
    assert counts.non_embedding == 3 * (attention + 2 * 32) + dense + 2 * (6 * expert + router) + 32
    assert counts.non_embedding == sum(p.numel() for p in (*mm1.decoder.layers.parameters(), mm1.decoder.norm.weight))
    assert counts.active_non_embedding == counts.non_embedding - 2 * 3 * expert
    assert counts.dense_twin == 3 * (attention + 2 * 32 + dense) + 32
    matrices = 3 * (2 * 32 * 48 + 2 * 32 * 24) + dense + 2 * (3 * expert + router)
    assert flops(mm1).position == 2 * matrices


def test_flops_with_other_heads_equal_what_torch_counts(model, batch):
    options = {"head_width": 12, "attention_bias": "all", "qk_norm": "head", "norm_place": "after"}
    mm1, step = model(kv_heads=4, **options).eval(), batch()
    step = replace(step, segments_BT=torch.ones_like(step.segments_BT), positions_BT=torch.arange(40).expand(2, 40))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        mm1.losses(step)
    cost = flops(mm1)
    masked = 2 * (40 * 40 - 40 * 41 // 2) * cost.key * 2
    assert float(cost.forward(step)) + masked == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_a_window_costs_the_keys_in_it(model, batch):
    """Documents of 5 and 3 positions, window 3: 1 + 2 + 3 + 3 + 3 and 1 + 2 + 3 keys; 15 and 6 without."""
    step = batch(rows=1, pictures=False)
    step.segments_BT[:], step.positions_BT[:] = 0, 0
    step.segments_BT[0, :8] = torch.tensor([1, 1, 1, 1, 1, 2, 2, 2])
    step.positions_BT[0, :8] = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    whole, windowed = flops(model()), flops(model(window_tokens=3, windowed_layers=[1]))
    key = 2 * 2 * 32  # scores and mix, a multiply-add each, of 4 heads of 8
    assert float(whole.forward(step) - windowed.forward(step)) == (15 + 6 - 12 - 6) * key
    assert windowed.key == key
