"""All experts on everything: equal to top-k with k = E, whatever the experts are."""

import pytest
import torch
from torch import nn

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.count import parameters
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import MoE
from mm1.model.moe.losses import ImportanceAndLoad
from mm1.model.moe.routing import Places
from mm1.model.moe.soft import SoftMixture, competitive_loss

X = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(2))
TEXT = Places.of_text(torch.ones(2, 10, dtype=torch.bool))


def filled(layer):
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(index))
    return layer


@pytest.mark.parametrize("double", [False, True])
def test_it_is_top_k_of_all_experts(double):
    sparse = filled(MoE(8, 12, experts=4, top_k=4))
    soft = SoftMixture(8, 12, experts=4)
    state = {"router.weight": sparse.router.weight}
    for index in range(4):
        state[f"experts.{index}.gate_up.weight"] = sparse.experts.gate_up[index]
        state[f"experts.{index}.down.weight"] = sparse.experts.down[index]
    soft.load_state_dict(state)
    if double:
        sparse, soft = sparse.double(), soft.double()
    x = X.double() if double else X
    y, stats = soft(x, TEXT)
    expected, wanted = sparse(x, TEXT)
    assert torch.allclose(y, expected, atol=1e-10 if double else 1e-5)
    for name in ("balance", "z", "load_LGE", "gauges_LGN", "together_LEE"):
        assert torch.allclose(getattr(stats, name), getattr(wanted, name).to(getattr(stats, name).dtype), atol=1e-4), (
            name
        )


def test_experts_may_be_any_modules_of_different_shapes():
    layer = filled(
        SoftMixture(
            8,
            12,
            experts=[
                lambda width: SwiGLU(width, 3),
                lambda width: nn.Linear(width, width),
                lambda width: nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, width)),
            ],
        )
    )
    y, stats = layer(X, TEXT)
    shares = (X @ layer.router.weight.T).softmax(-1)
    assert torch.allclose(y, sum(shares[..., e, None] * layer.experts[e](X) for e in range(3)), atol=1e-6)
    assert (layer.idle, layer.multiplied) == (0, 3 * 8 + 3 * 3 * 8 + 64 + 80)
    assert stats.load_LE.tolist() == [[20.0] * 3]
    y.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_a_yaml_says_what_the_experts_are(config):
    tree = config(experts=2)
    experts = [{"class_path": "mm1.model.ffn.SwiGLU", "init_args": {"ffn_width": width}} for width in (8, 24)]
    tree["init_args"]["decoder"]["init_args"]["moe"] = {
        "class_path": "mm1.model.moe.soft.SoftMixture",
        "init_args": {"experts": experts},
    }
    model = build(tree)
    model.to_empty(device="cpu")
    model.init_weights(0)
    counts = parameters(model)
    assert counts.active == counts.total
    down = model.decoder.layers[1].ffn.experts[1].down.weight
    assert down.std().item() == pytest.approx((24 * 2 * 2) ** -0.5, rel=0.1)
    with pytest.raises(UserError, match="a soft mixture of no experts"):
        SoftMixture(8, 12, experts=[])
    with pytest.raises(UserError, match="needs the chances of a noisy router"):
        SoftMixture(8, 12, experts=2, balance=ImportanceAndLoad())


def test_the_competitive_loss_of_a_worked_example():
    """Errors 2 and 8 squared, gates 1/4 and 3/4: -log(e^-1 / 4 + 3 e^-4 / 4)."""
    answers = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]], requires_grad=True)
    gate = torch.tensor([[0.25, 0.75]]).log()
    loss = competitive_loss(answers, torch.zeros(1, 2), gate)
    assert torch.allclose(loss, -(torch.tensor(-1.0).exp() / 4 + 3 * torch.tensor(-4.0).exp() / 4).log())
    loss.sum().backward()
    likely = torch.tensor([-1.0, -4.0]).exp() * torch.tensor([0.25, 0.75])
    assert torch.allclose(answers.grad[0], answers[0] * (likely / likely.sum())[:, None], atol=1e-6)
    far = torch.full((1, 2, 2), 1e3)
    assert competitive_loss(far, torch.zeros(1, 2), gate).isfinite().all()
