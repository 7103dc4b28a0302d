"""Dropout of the decoder's branches and, apart from it, of experts."""

import pytest
import torch

from mm1.errors import UserError


@pytest.mark.parametrize("norm_place", ["before", "after"])
def test_branches_are_dropped_in_training_alone(model, batch, norm_place):
    plain, dropping = (model(norm_place=norm_place, dropout=share) for share in (0.0, 0.5))
    hidden = [mm1.eval()(batch()).hidden_BTD for mm1 in (plain, dropping)]
    assert torch.equal(*hidden)
    layer = dropping.decoder.layers[0].train()
    torch.nn.init.zeros_(layer.attention.o.weight)
    if norm_place == "before":
        torch.nn.init.ones_(layer.ffn.down.weight)
    answers, x = [], torch.randn(1, 50, 32)
    rotation = dropping.decoder.rope.rotation(torch.arange(50)[None], torch.ones(1, 50).long(), 8, 10000.0)
    for _ in range(2):
        y, _ = layer(x, rotation, torch.ones(1, 1, 50, 50, dtype=torch.bool), None)
        answers.append(y - x)
    zeros = torch.stack(answers) == 0
    assert zeros.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(zeros[0], zeros[1])


def test_experts_drop_by_a_share_of_their_own(model, batch):
    mm1 = model(experts=4)
    ffn = mm1.decoder.layers[1].ffn
    ffn.experts.dropout = 0.5
    dense = [layer.dropout.p for layer in mm1.decoder.layers]
    assert dense == [0.0, 0.0]
    first, second = (mm1.train()(batch()).hidden_BTD for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(mm1.eval()(batch()).hidden_BTD, mm1(batch()).hidden_BTD)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(model, share):
    with pytest.raises(UserError, match=r"dropout is .*; expected at least 0 and less than 1"):
        model(dropout=share)
