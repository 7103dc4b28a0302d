"""The C-Abstractor against one written from its published definition in nothing but torch functions."""

import torch
import torch.nn.functional as F

from mm1.model.connector import CAbstractor


def channel_norm(x, state, name):
    y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)
    return y.permute(0, 3, 1, 2)


def bottleneck(x, state, name):
    """1x1, depth-wise 3x3, squeeze-excitation, 1x1; each convolution normed over channels; SiLU."""
    y = F.silu(channel_norm(F.conv2d(x, state[f"{name}.conv1.conv.weight"]), state, f"{name}.conv1.bn"))
    y = F.conv2d(y, state[f"{name}.conv2.conv.weight"], padding=1, groups=y.shape[1])
    y = F.silu(channel_norm(y, state, f"{name}.conv2.bn"))
    squeezed = y.mean((2, 3), keepdim=True)
    squeezed = F.silu(F.conv2d(squeezed, state[f"{name}.se.fc1.weight"], state[f"{name}.se.fc1.bias"]))
    y = y * F.conv2d(squeezed, state[f"{name}.se.fc2.weight"], state[f"{name}.se.fc2.bias"]).sigmoid()
    y = channel_norm(F.conv2d(y, state[f"{name}.conv3.conv.weight"]), state, f"{name}.conv3.bn")
    if f"{name}.downsample.conv.weight" in state:
        x = channel_norm(F.conv2d(x, state[f"{name}.downsample.conv.weight"]), state, f"{name}.downsample.bn")
    return F.silu(x + y)


def c_abstractor(patches, state, grid, side, depth):
    x = (patches + state["positions_1PV"]).permute(0, 2, 1).reshape(len(patches), -1, grid, grid)
    for block in range(depth):
        x = bottleneck(x, state, f"before.b{block + 1}")
    x = F.adaptive_avg_pool2d(x, side)
    for block in range(depth):
        x = bottleneck(x, state, f"after.b{block + 1}")
    x = x.reshape(*x.shape[:2], -1).permute(0, 2, 1)
    x = F.silu(F.linear(x, state["readout.0.weight"], state["readout.0.bias"]))
    return F.linear(x, state["readout.2.weight"], state["readout.2.bias"])


def test_the_c_abstractor_is_the_published_one():
    """27 x 27 patches to 144 tokens, as at 378 px, where the pooling is not even."""
    made = CAbstractor(24, 20, 27, tokens=144, width=16, depth=3)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    patches = torch.randn(2, 729, 24, generator=g)
    state = made.state_dict()
    assert state["before.b1.se.fc1.weight"].shape[0] == 6  # a quarter of the block's input, not of its width
    expected = c_abstractor(patches, state, 27, 12, 3)
    assert expected.shape == (2, 144, 20)
    assert torch.allclose(made(patches), expected, atol=1e-5)
