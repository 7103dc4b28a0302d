"""A sparse block of transformers and ours with the same weights: outputs and all gradients side by side."""

import torch

from mm1.model.moe.routing import Places


def fill(block, std=0.3):
    """Random weights, the same ones each time; blocks leave some of them empty."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.normal_(std=std, generator=generator)
    return block.eval()


def assert_equal(block, layer, renamed, width, atol=2e-5):
    """``renamed`` makes our tensors' names and values of theirs: of weights, and of gradients."""
    layer.load_state_dict(renamed(block.state_dict()))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 17, width, generator=generator)
    theirs_x, ours_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs = block(theirs_x)
    ours, _ = layer(ours_x, Places.of_text(torch.ones(2, 17, dtype=torch.bool)))
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)
    pull = torch.randn(theirs.shape, generator=generator)
    (theirs * pull).sum().backward()
    (ours * pull).sum().backward()
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, atol=10 * atol, rtol=1e-4)
    wanted = renamed({name: parameter.grad for name, parameter in block.named_parameters()})
    for name, parameter in layer.named_parameters():
        assert wanted[name].abs().max() > 1e-3, name
        torch.testing.assert_close(parameter.grad, wanted[name], atol=10 * atol, rtol=1e-4, msg=name)


def rename(state, names):
    """Each of our tensors is theirs of the first pattern's name that is there; several are stacked, gate above up."""
    found = {}
    for ours, theirs in names.items():
        parts = [state[name] for name in theirs if name in state]
        if parts:
            found[ours] = torch.cat(parts)
    return found
