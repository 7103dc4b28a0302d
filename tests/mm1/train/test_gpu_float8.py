"""The real products in 8 bits, on a GPU that has them: what they compute, what is learnt by them, that none waits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm1.train import float8
from tests.conftest import fit
from tests.mm1.train.test_float8 import made
from tests.mm1.train.test_gpu_step import QUIET, on_gpu

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < float8.CAPABILITY,
        reason="needs a CUDA device with products in 8 bits",
    ),
    pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: mm1[float8]"),
]
RECIPES = ["tensorwise", "rowwise", "rowwise_with_gw_hp"]


def learnt(recipe: str, weights: torch.dtype, emulate: bool, compiled: bool) -> list[Tensor]:
    """What the first block of an encoder puts out for several numbers of pictures, and every gradient."""
    float8.EMULATE = emulate
    try:
        model = made().to(GPU, weights)
        float8.convert(model, recipe, GPU)
    finally:
        float8.EMULATE = False
    block, found = model.vision.blocks[0], []
    if compiled:
        torch._dynamo.reset()
        block.compile(dynamic=True)
    for pictures in (3, 5, 16):
        generator = torch.Generator(GPU).manual_seed(pictures)
        x_IPV = torch.randn(pictures, 17, 32, device=GPU, generator=generator).to(weights).requires_grad_()
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=weights == torch.float32):
            y = sum(block(x_IPV, None))
        (y.float() * 1e-5).square().sum().backward()
        found += [y.detach(), x_IPV.grad, *(p.grad for p in block.parameters())]
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_products_are_those_that_a_cpu_emulates(recipe: str, weights: torch.dtype, compiled: bool) -> None:
    """Rows in any number; what lies between is bf16's roundings, which here and there tip one to 8 bits."""
    real, emulated = (learnt(recipe, weights, emulate, compiled) for emulate in (False, True))
    for found, expected in zip(real, emulated, strict=True):
        assert found.isfinite().all()
        assert float((found - expected).float().norm() / expected.float().norm()) < 0.05


@pytest.mark.parametrize(
    ("experts", "weights", "recipe"),
    [(0, "bfloat16", "tensorwise"), (4, "float32", "rowwise"), (0, "float32", "tensorwise")],
)
def test_it_learns_what_full_products_learn(
    make_corpus: Any, tmp_path: Path, experts: int, weights: str, recipe: str
) -> None:
    """As ``test_float8`` has it, without a compiler, which takes minutes for a model of this size."""
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    curves = []
    for way in ("none", recipe):
        config = on_gpu(corpus, experts, max_steps=40, log_every_n_steps=1, limit_val_batches=0)
        config["trainer"]["precision"] = "bf16-mixed" if weights == "float32" else "32-true"
        config["model"] |= {"weights": weights, "float8": way}
        config["model"]["optimizer"]["lr"] = 5e-3
        curves.append(torch.tensor([line["loss"] for line in fit(tmp_path / way, config).history("train")]))
    off = (curves[1] - curves[0]).abs()
    assert curves[0][-1] < 3
    assert 0 < off[-10:].mean() < 0.1


def test_a_step_never_waits_for_the_gpu(make_corpus: Any, tmp_path: Path) -> None:
    waiting = {"class_path": "tests.mm1.train.test_gpu_step.NoWaiting"}
    config = on_gpu(make_corpus(captions=41, interleaved=30, text=17), 0, callbacks=[waiting], **QUIET)
    config["model"] |= {"weights": "bfloat16", "float8": "tensorwise"}
    assert fit(tmp_path / "run", config).history("train")
