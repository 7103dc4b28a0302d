"""What a GPU computes by other operators than a CPU, held against the CPU's own where both can run."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from mm1.batch import IMAGE
from mm1.model.connector import CAbstractor
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


@pytest.mark.parametrize("width", [72, 1280])
def test_the_kernel_of_adding_and_norming_is_layer_norm_with_its_gradients(width):
    pytest.importorskip("triton", reason="Triton is not installed")
    from mm1.model import add_norm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(37, width, generator=g).to(device).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(width, generator=g).to(device).requires_grad_() for _ in range(2))
    grad_total, grad_normed = (torch.randn(37, width, generator=g).to(device) for _ in range(2))
    total = x + branch
    normed = layer_norm(total, (width,), weight, bias, 1e-5)
    expected = torch.autograd.grad([total, normed], [x, branch, weight, bias], [grad_total, grad_normed])
    found_total, found_normed, _ = add_norm._forward(x, branch, weight, bias, 1e-5)
    found = torch.autograd.grad([found_total, found_normed], [x, branch, weight, bias], [grad_total, grad_normed])
    assert close(found_total, total.detach())
    assert close(found_normed, normed.detach())
    assert all(close(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
