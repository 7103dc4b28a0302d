"""A shared expert behind a sigmoid gate against Qwen2-MoE's block of transformers."""

from functools import partial

import pytest
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import TopK
from tests.parity.moe_blocks import assert_equal, fill, rename

NAMES = {
    "router.weight": ["gate.weight"],
    "experts.gate_up": ["experts.gate_up_proj"],
    "experts.down": ["experts.down_proj"],
    "shared.gate_up.weight": ["shared_expert.gate_proj.weight", "shared_expert.up_proj.weight"],
    "shared.down.weight": ["shared_expert.down_proj.weight"],
    "shared_gate.weight": ["shared_expert_gate.weight"],
}


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_block_is_qwens(renormalise):
    config = Qwen2MoeConfig(
        hidden_size=32,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=48,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=renormalise,
    )
    router = partial(TopK, renormalise=renormalise)
    layer = MoE(32, 20, experts=8, top_k=3, router=router, shared_width=48, shared_gate=True)
    assert_equal(fill(Qwen2MoeSparseMoeBlock(config)), layer, partial(rename, names=NAMES), 32)
