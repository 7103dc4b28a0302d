"""Sigmoid scores, bias, groups, shared experts and scale against DeepSeek-V3's block of transformers."""

from functools import partial

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import Sigmoid
from mm1.model.moe.routing import Places
from tests.parity.moe_blocks import assert_equal, fill, rename

NAMES = {
    "router.weight": ["gate.weight"],
    "router.bias": ["gate.e_score_correction_bias"],
    "experts.gate_up": ["experts.gate_up_proj"],
    "experts.down": ["experts.down_proj"],
    "shared.gate_up.weight": ["shared_experts.gate_proj.weight", "shared_experts.up_proj.weight"],
    "shared.down.weight": ["shared_experts.down_proj.weight"],
}


@pytest.mark.parametrize(("groups", "kept", "shared", "scale"), [(4, 2, 1, 2.5), (1, 1, 2, 1.0), (2, 1, 1, 1.5)])
def test_the_block_is_deepseeks(groups, kept, shared, scale):
    config = DeepseekV3Config(
        hidden_size=32,
        moe_intermediate_size=20,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=groups,
        topk_group=kept,
        n_shared_experts=shared,
        routed_scaling_factor=scale,
        norm_topk_prob=True,
    )
    block = fill(DeepseekV3MoE(config))
    router = partial(Sigmoid, scale=scale, groups=groups, groups_kept=kept)
    layer = MoE(32, 20, experts=16, top_k=4, router=router, shared_width=20 * shared)
    assert_equal(block, layer, partial(rename, names=NAMES), 32)
    with torch.no_grad():
        layer.router.bias.zero_()  # the bias did decide something above
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(layer(x, Places.of_text(torch.ones(2, 17, dtype=torch.bool)))[0], block(x), atol=1e-2)
