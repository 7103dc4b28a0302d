"""Mixture of experts: routing, its losses, and the way to the experts and back."""

import pytest
import torch
from torch.nn.functional import linear

from mm1.errors import UserError
from mm1.model.ffn import gated
from mm1.model.moe.dispatch import LocalDispatch
from mm1.model.moe.layer import MoE
from mm1.model.moe.losses import ImportanceAndLoad, LoadTimesShare, z_loss
from mm1.model.moe.routers import TopK
from mm1.model.moe.routing import Places, Routing, Rows, TokenChoice


def moe(experts=4, top_k=2, width=8, seed=0, **options):
    layer = MoE(width, 12, experts=experts, top_k=top_k, **options)
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(seed + index))
    return layer


def tokens(rows=2, length=6, width=8, seed=9):
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def text(rows=2, length=6):
    return Places.of_text(torch.ones(rows, length, dtype=torch.bool))


def test_a_token_is_the_weighted_sum_of_its_experts():
    layer, x = moe(), tokens()
    y, _ = layer(x, text())
    for row in range(2):
        for position in range(6):
            vector = x[row, position]
            best = (layer.router.weight @ vector).softmax(0).topk(2)
            shares = best.values / best.values.sum()
            experts = layer.experts
            outputs = [experts.down[e] @ gated(experts.gate_up[e] @ vector) for e in best.indices]
            assert torch.allclose(y[row, position], sum(s * o for s, o in zip(shares, outputs, strict=True)), atol=1e-5)


def test_nothing_is_dropped_when_all_tokens_choose_the_same_experts():
    layer, x = moe(), tokens(rows=1).abs()
    with torch.no_grad():
        layer.router.weight.copy_(torch.tensor([-1.0, 2.0, -1.0, 1.0])[:, None].expand(4, 8))
    y, stats = layer(x, text(1))
    assert stats.load_LE.tolist() == [[0, 6, 0, 6]]
    weights = linear(x, layer.router.weight).softmax(-1)[..., [1, 3]]
    weights = weights / weights.sum(-1, keepdim=True)
    experts = layer.experts
    expected = sum(
        weights[..., i : i + 1] * linear(gated(linear(x, experts.gate_up[e])), experts.down[e])
        for i, e in [(0, 1), (1, 3)]
    )
    assert torch.allclose(y, expected, atol=1e-5)
    y.sum().backward()
    assert experts.down.grad[0].abs().max() == 0
    assert experts.down.grad[1].abs().max() > 0


def test_rows_are_those_of_the_drawing():
    choice = TokenChoice(torch.tensor([[2, 0], [0, 1], [2, 1]]), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    rows = choice.rows(3)
    assert rows.tokens_R.tolist() == [0, 1, 1, 2, 0, 2]
    assert rows.weights_R.tolist() == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.1, 0.5])
    assert rows.counts_E.tolist() == [2, 2, 2]
    assert rows.rows_MK.tolist() == [[4, 0], [1, 2], [5, 3]]


def balance(shares, choices, valid=None, loss=None):
    valid = torch.ones(shares.shape[:2], dtype=torch.bool) if valid is None else valid
    choice = TokenChoice(choices.flatten(0, 1), torch.ones_like(choices.flatten(0, 1), dtype=torch.float32))
    hot = choice.hot(valid.numel(), shares.shape[-1]).unflatten(0, valid.shape)
    return (loss or LoadTimesShare())(Routing(choice, shares.log(), shares), hot, Places.of_text(valid))


def test_balance_is_one_at_perfect_balance_and_the_number_of_experts_at_collapse():
    even = torch.full((1, 8, 4), 0.25)
    choices = torch.tensor([[0, 1], [2, 3]] * 4).unsqueeze(0)
    assert balance(even, choices) == 8  # one, for each of 8 tokens
    one_hot = torch.eye(4)[torch.zeros(1, 8, dtype=torch.int64)]
    assert balance(one_hot, torch.zeros(1, 8, 1, dtype=torch.int64)) == 8 * 4


def test_balance_of_a_worked_example():
    """Two tokens and a padded one, two experts, top-1: f = (1, 0), P = (0.8, 0.2), so 2 * 0.8 = 1.6 a token."""
    shares = torch.tensor([[[0.9, 0.1], [0.7, 0.3], [0.0, 1.0]]])
    valid = torch.tensor([[True, True, False]])
    assert torch.allclose(balance(shares, torch.tensor([[[0], [0], [1]]]), valid), torch.tensor(2 * 1.6))


def test_an_untrained_router_is_balanced_and_its_z_loss_is_the_square_of_log_experts():
    layer = moe(experts=16)
    torch.nn.init.zeros_(layer.router.weight)
    _, stats = layer(tokens(rows=1, length=5), text(1, 5))
    assert torch.allclose(stats.z / 5, torch.tensor(16.0).log() ** 2, atol=1e-5)
    assert torch.allclose(stats.balance / 5, torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(stats.loss, 0.01 * stats.balance + 0.001 * stats.z)


def test_z_loss_of_a_worked_example():
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]]])
    expected = torch.tensor(2.0).log() ** 2 + (torch.tensor(1.0).exp() + torch.tensor(3.0).exp()).log() ** 2
    assert torch.allclose(z_loss(logits, torch.tensor([[True, True, False]])), expected)


def test_padding_counts_nowhere():
    layer, x = moe(), tokens()
    valid = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    _, padded = layer(x, Places.of_text(valid))
    _, alone = layer(x[:1, :4], Places.of_text(valid[:1, :4]))
    for name in ("loss", "balance", "z", "load_LGE", "gauges_LGN", "together_LEE"):
        assert torch.allclose(getattr(padded, name), getattr(alone, name), atol=1e-6), name
    assert padded.load_LE.sum() == 4 * 2


def test_both_losses_reach_the_router():
    for coefficients in ({"balance_weight": 1.0, "z_weight": 0.0}, {"balance_weight": 0.0, "z_weight": 1.0}):
        layer = moe(**coefficients)
        layer(tokens(), text())[1].loss.backward()
        assert layer.router.weight.grad.abs().max() > 1e-3


def test_the_router_computes_in_fp32_under_autocast():
    layer, x = moe(), tokens()
    _, wanted = layer(x, text())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, stats = layer(x, text())
    assert torch.equal(stats.balance, wanted.balance)
    assert stats.loss.dtype == torch.float32


def test_statistics_are_split_by_source_and_modality():
    layer, x = moe(), tokens(rows=1)
    image = torch.tensor([[True, True, False, False, False, False]])
    sources = torch.tensor([[1, 1, 1, 0, 0, 0]])
    places = Places(torch.tensor([[True] * 5 + [False]]), image, sources, 2)
    _, stats = layer(x, places)
    assert stats.gauges_LGN[0, :, 0].tolist() == [2, 0, 1, 2]  # text and pictures of source 0, of source 1
    chosen = layer.router(x, places).choice.experts_MK
    assert stats.load_LGE[0, 3].tolist() == torch.bincount(chosen[:2].flatten(), minlength=4).tolist()
    shares = linear(x[0, :2], layer.router.weight).softmax(-1)
    assert stats.gauges_LGN[0, 3, 1].item() == pytest.approx(torch.special.entr(shares).sum().item(), abs=1e-5)
    for first, second in chosen[:5].tolist():
        assert stats.together_LEE[0, first, second] >= 1
    assert stats.together_LEE[0].diagonal().tolist() == stats.load_LE[0].tolist()


def test_another_dispatch_can_take_the_place_of_the_local_one():
    class Shuffled(LocalDispatch):
        """Sends the tokens through a permutation and back, as an exchange between ranks would."""

        def __call__(self, x_MD, rows, experts):
            last = len(x_MD) - 1
            moved = Rows(last - rows.tokens_R, rows.weights_R, rows.counts_E, rows.rows_MK.flip(0))
            return super().__call__(x_MD.flip(0), moved, experts).flip(0)

    layer, x = moe(), tokens()
    expected, _ = layer(x, text())
    layer.dispatch = Shuffled()
    assert torch.allclose(layer(x, text())[0], expected, atol=1e-6)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(UserError, match="top_k=5 of 4 experts; expected 1 to 4"):
        MoE(8, 8, experts=4, top_k=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0, "top_k": 0}, "moe.experts is 0; expected at least 1"),
        ({"balance_weight": -0.01}, "moe.balance_weight is -0.01; expected at least 0"),
        ({"z_weight": float("nan")}, "moe.z_weight is nan; expected at least 0"),
        ({"expert_dropout": 1.0}, "moe.expert_dropout is 1.0; expected at least 0 and less than 1"),
        ({"shared_gate": True}, r"expected a shared_width above 0 \(model.decoder.moe.shared_width\)"),
        ({"balance": ImportanceAndLoad()}, "noisy router, TopK has none; expected router: NoisyTopK"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MoE(8, 12, **{"experts": 4, **options})


def test_a_failed_expert_gets_nothing_and_its_share_goes_to_the_others():
    layer, x = moe(), tokens()
    layer.router.fail([1])
    y, stats = layer(x, text())
    assert stats.load_LE[0, 1] == 0
    assert stats.load_LE.sum() == 2 * 12
    rest = [0, 2, 3]
    other = MoE(8, 12, experts=3, top_k=2)
    with torch.no_grad():
        other.router.weight.copy_(layer.router.weight[rest])
        other.experts.gate_up.copy_(layer.experts.gate_up[rest])
        other.experts.down.copy_(layer.experts.down[rest])
    assert torch.allclose(y, other(x, text())[0], atol=1e-6)
    with pytest.raises(UserError, match="3 of 4 experts masked while a token visits 2; expected at most 2"):
        TopK(8, 4, 2).fail([0, 1, 2])
    with pytest.raises(UserError, match="expert 4 of 4; expected 0 to 3"):
        TopK(8, 4, 2).fail([4])


def test_every_nth_layer_is_sparse(model):
    layers = model(experts=4, layers=6, moe_every=3).decoder.layers
    assert [isinstance(layer.ffn, MoE) for layer in layers] == [False, False, True, False, False, True]


@pytest.mark.parametrize("moe_every", [0, 3])
def test_a_mixture_without_a_sparse_layer_is_refused(model, moe_every):
    with pytest.raises(UserError, match=f"moe_every={moe_every} of 2 layers.*expected 1 to 2"):
        model(experts=4, moe_every=moe_every)
