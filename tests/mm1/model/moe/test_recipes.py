"""configs/ablations/router-*.yaml: every router has one, every one builds without memory, is filled and learns."""

from pathlib import Path

import pytest
import torch
import yaml

from mm1.batch import IMAGE, Batch, targets_of
from mm1.model.build import build
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import TopK
from mm1.model.stored import fill
from tests.mm1.model.moe.reference import concrete

ROOT = Path(__file__).resolve().parents[4]
RECIPES = sorted((ROOT / "configs" / "ablations").glob("router-*.yaml"))


def class_paths(tree):
    """Of all parts that a YAML names."""
    if isinstance(tree, dict):
        yield from [tree["class_path"]] if "class_path" in tree else []
        tree = [*tree.values()]
    for part in tree if isinstance(tree, list) else []:
        yield from class_paths(part)


def batch(model):
    """A row of a picture, text and padding, of a source that the model's router knows."""
    tasks = [router.tasks for router in model.modules() if hasattr(router, "tasks")]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 2048, (1, 32), generator=generator)
    tokens[:, :16] = IMAGE
    segments = (torch.arange(32) < 29).long().unsqueeze(0)
    positions = torch.arange(32) * segments
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    targets = targets_of(tokens, segments, torch.ones_like(tokens, dtype=torch.bool))
    sources = tuple(tasks[0]) if tasks else ("documents",)
    return Batch(tokens, targets, segments, positions, torch.zeros_like(tokens), images, sources)


def step(model):
    """Forward and backward; the loss on text."""
    sums = model.losses(batch(model))
    (sums.cross_entropy / sums.targets + sums.router / sums.tokens).backward()
    return (sums.cross_entropy / sums.targets).item()


def test_every_router_has_a_recipe():
    named = {path.rsplit(".", 1)[-1] for recipe in RECIPES for path in class_paths(yaml.safe_load(recipe.read_text()))}
    assert {router.__name__ for router in concrete()} - {TopK.__name__} <= named
    assert {"router-mixtral.yaml", "router-olmoe.yaml", "router-glam.yaml"} <= {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_without_memory_and_learns(recipe):
    assert recipe.read_text().startswith("# ")
    model = build(recipe)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    everything = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        for tensor in everything:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    model.init_weights(0)
    assert all(torch.isfinite(tensor).all() for tensor in everything)
    fill(again := build(recipe), model.state_dict(), recipe.stem)
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    torch.manual_seed(0)
    before = step(model)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.optim.AdamW(model.parameters(), lr=3e-3).step()
    assert step(model) < before - 0.1
    mixtures = [layer.ffn for layer in model.decoder.layers if isinstance(layer.ffn, Mixture)]
    assert mixtures
    for mixture in mixtures:
        assert 0 <= mixture.idle < sum(parameter.numel() for parameter in mixture.parameters())
        assert mixture.multiplied > 0
