"""GShard's top-2 with capacity and priority against transformers' NLLB-MoE, which has them from fairseq.

Its block hands tokens to wrong experts (a mask of zeros and ones is read as numbers of experts), so its router is
compared, and what its weights and experts should make together.
"""

import pytest
import torch
from transformers import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

from mm1.model.moe.capacity import Capacity
from mm1.model.moe.routers import GShard
from mm1.model.moe.routing import Places
from tests.parity.test_moe_switch import through

WIDTH, EXPERTS, TOKENS = 16, 4, 24


def theirs(room, priority):
    torch.manual_seed(0)
    settings = NllbMoeConfig(
        d_model=WIDTH,
        num_experts=EXPERTS,
        expert_capacity=room,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        batch_prioritized_routing=priority == "batch",
        moe_eval_capacity_token_fraction=-1.0,
        router_bias=False,
        activation_dropout=0.0,
        moe_token_dropout=0.0,
    )
    block = NllbMoeSparseMLP(settings, ffn_dim=20)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block.train()


def places(padding):
    return Places.of_text(torch.arange(TOKENS).view(1, TOKENS) % 7 != 3 if padding else torch.ones(1, TOKENS).bool())


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("priority", ["position", "batch"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_weights_and_what_is_dropped(factor, priority, padding, pad):
    room = -(-factor * 2 * TOKENS // EXPERTS)
    block = theirs(int(room), priority)
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2)) + 0.3
    valid = places(padding)
    _, wanted_ME, _ = block.router(x.view(-1, WIDTH), ~valid.valid_BT.flatten() if padding else None)
    router = GShard(WIDTH, EXPERTS).eval()
    router.load_state_dict({"weight": block.router.classifier.weight.detach()})
    choice = Capacity(factor, priority=priority, pad=pad)(router(x, valid), valid, EXPERTS, True)
    assert factor > 1 or not choice.kept_MK[valid.valid_BT.flatten()].all()
    found_ME = torch.zeros_like(wanted_ME).scatter(1, choice.experts_MK, choice.weights_MK * choice.kept_MK)
    assert torch.equal(found_ME > 0, wanted_ME > 0)
    torch.testing.assert_close(found_ME, wanted_ME, atol=1e-6, rtol=1e-6)
    experts = [block.experts[f"expert_{index}"] for index in range(EXPERTS)]
    answers_EMD = torch.stack([expert(x[0]) for expert in experts])
    wanted_MD = torch.einsum("me,emd->md", wanted_ME, answers_EMD)
    torch.testing.assert_close(through(experts, x, choice.rows(EXPERTS))[0], wanted_MD, atol=1e-5, rtol=1e-5)
