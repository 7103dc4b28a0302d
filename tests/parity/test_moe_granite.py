"""The best scores first, then a softmax over them: GraniteMoE's block of transformers equals our renormalised top-k."""

from functools import partial

from transformers import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE

from mm1.model.moe.layer import MoE
from tests.parity.moe_blocks import assert_equal, fill, rename

NAMES = {  # of newer and of older releases
    "router.weight": ["router.weight", "router.layer.weight"],
    "experts.gate_up": ["experts.gate_up_proj", "input_linear.weight"],
    "experts.down": ["experts.down_proj", "output_linear.weight"],
}


def test_the_block_is_granites():
    config = GraniteMoeConfig(hidden_size=32, intermediate_size=20, num_local_experts=8, num_experts_per_tok=3)
    layer = MoE(32, 20, experts=8, top_k=3)
    assert_equal(fill(GraniteMoeMoE(config)), layer, partial(rename, names=NAMES), 32)
