"""What a GPU computes by other operators than a CPU, held against the CPU's own where both can run."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention, silu

from mm1.batch import IMAGE
from mm1.model import add_norm
from mm1.model.attention import UNBOUNDED, Filled, attend
from mm1.model.connector import CAbstractor
from mm1.model.ffn import _Gated
from mm1.model.loss import _scored_on_gpu
from mm1.model.products import _Linear, whole_waves
from mm1.model.splice import places, splice


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


def test_channels_last_is_the_c_abstractor_with_its_gradients():
    """27 x 27 patches to 144 tokens, where the pooling is not even; the first block also changes the channels."""
    g = torch.Generator().manual_seed(0)
    made = CAbstractor(24, 20, 27, tokens=144, width=16, depth=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    patches = torch.randn(2, 729, 24, generator=g, requires_grad=True)
    inputs = [patches, *made.parameters()]
    expected = made(patches)
    found = made.readout(made._channels_last(patches + made.positions_1PV))
    assert close(found, expected)
    pull = torch.randn(expected.shape, generator=g)
    grads = zip(*(torch.autograd.grad((y * pull).sum(), inputs) for y in (found, expected)), strict=True)
    assert all(close(ours, theirs) for ours, theirs in grads)


def test_places_are_those_of_pictures_in_order():
    tokens = torch.tensor([[5, IMAGE, IMAGE, 7], [IMAGE, 3, 4, IMAGE]])
    assert places(tokens, 4).tolist() == [1, 2, 4, 7]
    x, features = torch.zeros(2, 4, 3), torch.arange(1.0, 13).view(2, 2, 3)
    spliced = splice(x, tokens, features)
    by_places = x.flatten(0, 1).index_copy(0, places(tokens, 4), features.flatten(0, 1)).view_as(x)
    assert torch.equal(by_places, spliced)


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: on a GPU, or anywhere in its interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("width", [72, 1280])
def test_the_kernel_of_adding_and_norming_is_layer_norm_with_its_gradients(width, device):
    g = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(37, width, generator=g).to(device).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(width, generator=g).to(device).requires_grad_() for _ in range(2))
    grad_total, grad_normed = (torch.randn(37, width, generator=g).to(device) for _ in range(2))
    total = x + branch
    normed = layer_norm(total, (width,), weight, bias, 1e-5)
    inputs, grads = [x, branch, weight, bias], [grad_total, grad_normed]
    expected = torch.autograd.grad([total, normed], inputs, grads)
    found_total, found_normed, _ = add_norm._forward(x, branch, weight, bias, 1e-5)
    found = torch.autograd.grad([found_total, found_normed], inputs, grads)
    assert close(found_total, total)
    assert close(found_normed, normed)
    assert all(close(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_more_rows_than_programs_lose_nothing(device, monkeypatch):
    monkeypatch.setattr("mm1.model.dense_triton.PROGRAMS", 3)
    test_the_kernel_of_adding_and_norming_is_layer_norm_with_its_gradients(72, device)


@pytest.mark.parametrize("width", [40, 1100])
def test_the_kernel_of_the_gate_has_the_gradients_of_the_gate(width, device):
    g = torch.Generator().manual_seed(0)
    pre = torch.randn(3, 5, 2 * width, generator=g).to(device).requires_grad_()
    pull = torch.randn(3, 5, width, generator=g).to(device)
    gate, up = pre.chunk(2, -1)
    [expected] = torch.autograd.grad(silu(gate) * up, [pre], pull)
    y = _Gated.apply(pre)
    [found] = torch.autograd.grad(y, [pre], pull)
    assert close(y, silu(gate) * up)
    assert close(found, expected)


@pytest.mark.parametrize("vocabulary", [50, 5000])
def test_the_kernel_of_the_loss_is_cross_entropy_with_its_gradient(vocabulary, device):
    g = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(6, vocabulary, generator=g)).to(device).requires_grad_()
    targets = torch.tensor([0, 1, vocabulary - 1, 7, 7, vocabulary // 2], device=device)
    expected = cross_entropy(logits, targets, reduction="none")
    [slope] = torch.autograd.grad(expected.sum(), [logits])
    scored = logits.detach().clone()
    asked, _ = _scored_on_gpu(scored, targets, learning=False)
    assert torch.equal(scored, logits.detach())
    found, error = _scored_on_gpu(scored, targets, learning=True)
    assert close(asked, expected)
    assert close(found, expected)
    assert close(error, slope)
    lost, _ = _scored_on_gpu(logits.detach().clone(), torch.full_like(targets, vocabulary), learning=True)
    assert lost.isnan().all(), "what is no word of the vocabulary has no loss"


@pytest.mark.parametrize(("high", "wide"), [(100, 30), (30, 100), (40, 40), (120, 40)])
def test_a_weights_gradient_in_whole_waves_is_the_gradient(high, wide, monkeypatch):
    """With waves of 2,640 results: 1.1 waves are two products, 0.6 and 1.8 are one."""
    monkeypatch.setattr("mm1.model.products.TILE", 20)
    monkeypatch.setattr("mm1.model.products.EVEN", 8)
    g = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(wide, high)
    x = torch.randn(2, 9, wide, generator=g, requires_grad=True)
    pull = torch.randn(2, 9, high, generator=g)
    inputs = [x, *layer.parameters()]
    found, expected = _Linear.apply(x, layer.weight, layer.bias), layer(x)
    assert torch.equal(found, expected)
    grads = zip(*(torch.autograd.grad(y, inputs, pull) for y in (found, expected)), strict=True)
    assert all(close(ours, theirs) for ours, theirs in grads)


@pytest.mark.parametrize(
    ("longer", "shorter", "cut"),
    [(5120, 1280, 4096), (11008, 2048, 10496), (5504, 2048, 5120), (3840, 1280, 3840), (13824, 2560, 13824)],
)
def test_where_waves_end_on_132_multiprocessors(longer, shorter, cut):
    """The first three were the fastest cuts that an H200 was tried with, the fourth was fastest in one piece."""
    assert whole_waves(longer, shorter, 132) == cut


@pytest.mark.parametrize(
    ("heads", "groups", "width", "places", "window"),
    [(4, 4, 32, 700, None), (4, 2, 24, 300, None), (6, 1, 16, 515, 37), (2, 2, 80, 64, 5)],
)
def test_the_kernel_of_a_step_reads_what_each_slot_has_filled(heads, groups, width, places, window, device):
    """In the first slots of a longer cache; what stands beyond the last place is no number and is not looked at."""
    g = torch.Generator().manual_seed(0)
    last, at = torch.tensor([0, places // 2, places - 1]), torch.arange(places)
    cache = torch.randn(2, 5, groups, places + 9, width, generator=g)
    q = torch.randn(3, heads, 1, width, generator=g).to(device)
    seen = at <= last[:, None]
    if window is not None:
        seen &= last[:, None] - at < window
    keys, values = cache[:, :3, :, :places].to(device)
    mask = seen[:, None, None].to(device)
    expected = scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=heads > groups)
    beyond = (at > last[:, None])[:, None, :, None].to(device)
    keys, values = keys.masked_fill(beyond, torch.nan), values.masked_fill(beyond, torch.nan)
    filled = Filled(last.to(device), UNBOUNDED if window is None else window)
    found = attend(q, keys, values, filled, heads // groups)
    assert close(found, expected)


def test_neither_other_slots_nor_room_behind_change_a_bit_of_a_step(device):
    """Read in five parts, alone and in the least room, or beside others in a cache of eighteen."""
    g = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, 2, 4500, 16, generator=g).to(device)
    q, last = torch.randn(3, 2, 1, 16, generator=g).to(device), torch.tensor([7, 1100, 4499], device=device)
    together = attend(q, keys, values, Filled(last, UNBOUNDED), 1)[1:2]
    room = slice(1, 2), slice(None), slice(0, 1101)
    assert torch.equal(attend(q[1:2], keys[room], values[room], Filled(last[1:2], UNBOUNDED), 1), together)


def test_a_frozen_layer_keeps_no_input():
    layer, x = torch.nn.Linear(6, 8).requires_grad_(False), torch.randn(5, 6, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = _Linear.apply(x, layer.weight, layer.bias)
    assert [tuple(t.shape) for t in kept] == [(8, 6)]
    [grad] = torch.autograd.grad(y.sum(), [x])
    assert close(grad, layer.weight.sum(0).expand(5, -1))
