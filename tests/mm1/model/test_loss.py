"""The loss as sums: right in value, and the same however a step is spread."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from mm1.batch import IGNORE, IMAGE
from mm1.model import loss
from mm1.model.loss import cross_entropy_sum


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 20])
def test_chunked_cross_entropy_equals_the_plain_one(monkeypatch, tokens):
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 8)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 6, generator=g, requires_grad=True)
    head = torch.randn(11, 6, generator=g, requires_grad=True)
    targets = torch.randint(0, 11, (tokens,), generator=g)
    total, each = cross_entropy_sum(hidden, head, targets)
    (3 * total).backward()
    found = (hidden.grad, head.grad)
    hidden.grad = head.grad = None
    plain = cross_entropy(hidden @ head.T, targets, reduction="none")
    (3 * plain.sum()).backward()
    assert torch.allclose(each, plain, atol=1e-5)
    assert torch.allclose(total, plain.sum(), atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, (hidden.grad, head.grad), strict=True))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_logits_stay_in_their_type_and_stand_alone(monkeypatch, weights):
    """Under autocast fp32 hidden states have bf16 logits, too: no chunk is copied, or kept beside the next."""
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 8)
    alive: list[weakref.ref] = []
    most = []

    def counted(hidden, head):
        logits = linear(hidden, head)
        alive.append(weakref.ref(logits))
        most.append(sum(one() is not None for one in alive))
        return logits

    seen = []

    def scored(logits, targets, learning):
        losses, error = real(logits, targets, learning)
        seen.append((logits.dtype, error.dtype))
        return losses, error

    real = loss._scored
    monkeypatch.setattr(loss, "linear", counted)
    monkeypatch.setattr(loss, "_scored", scored)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 6, generator=g).to(weights).requires_grad_()
    head = torch.randn(11, 6, generator=g).to(weights).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cross_entropy_sum(hidden, head, torch.randint(0, 11, (20,), generator=g))[0].backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 3
    assert most == [1, 1, 1]
    assert hidden.grad.dtype == head.grad.dtype == weights


def test_cross_entropy_gives_gradients_only_where_they_are_wanted():
    hidden, head, targets = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1, 4])
    cross_entropy_sum(hidden, head, targets)[0].backward()
    assert hidden.grad is None
    assert head.grad is not None
    with torch.no_grad():
        assert not cross_entropy_sum(hidden, head, targets)[0].requires_grad


def part(batch, rows, tokens_per_image=4):
    """Some rows of a batch with their pictures."""
    pictures = (batch.tokens_BT == IMAGE).sum(1) // tokens_per_image
    owners = torch.arange(len(pictures)).repeat_interleave(pictures)
    names = ("tokens_BT", "targets_BT", "segments_BT", "positions_BT", "sources_BT")
    images = batch.images_ICHW[torch.isin(owners, torch.tensor(rows))]
    return replace(batch, images_ICHW=images, **{name: getattr(batch, name)[rows] for name in names})


@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 3], [1, 2]]])
def test_gradients_do_not_depend_on_how_rows_are_spread(model, batch, split):
    """4 x 1, 2 x 2 and 1 x 4: the same whether the parts are ranks or micro-batches, as both only add up."""
    mm1, step = model(experts=4), batch(rows=4)
    step.targets_BT[2, ::2] = IGNORE  # rows of unequal weight

    def gradients(parts):
        mm1.zero_grad(set_to_none=True)
        for rows in parts:
            sums = mm1.losses(part(step, rows))
            (sums.cross_entropy / step.targets + sums.router / step.tokens).backward()
        return {name: parameter.grad for name, parameter in mm1.named_parameters()}

    expected, found = gradients([[0, 1, 2, 3]]), gradients(split)
    for name in expected:
        assert (expected[name] - found[name]).abs().max() < 1e-6, name


def test_sums_by_source_add_up(model, batch):
    mm1, step = model(experts=4), batch()
    sums = mm1.losses(step)
    assert torch.allclose(sums.cross_entropy_S.sum(), sums.cross_entropy, atol=1e-3)
    assert sums.targets_S.sum() == sums.targets == step.targets
    only = replace(step, targets_BT=step.targets_BT.where(step.sources_BT == 1, IGNORE))
    assert torch.allclose(mm1.losses(only).cross_entropy, sums.cross_entropy_S[1], atol=1e-3)
    assert sums.load_LGE.shape == (1, 2 * len(step.sources), 4)
    assert sums.load_LGE.sum() == 2 * sums.tokens


def test_a_dense_model_has_no_router_loss(model, batch):
    sums = model().losses(batch())
    assert sums.router == sums.balance == sums.z == 0
    assert sums.load_LGE.numel() == 0


def test_places_counted_beforehand_give_the_same_sums(model, batch):
    mm1, step = model(experts=4), batch()
    counted = step.counted()
    assert step.learned_M is None
    assert counted.learned_M.numel() == step.targets
    for name in ("cross_entropy", "targets", "cross_entropy_S", "targets_S"):
        assert torch.equal(getattr(mm1.losses(counted), name), getattr(mm1.losses(step), name)), name
