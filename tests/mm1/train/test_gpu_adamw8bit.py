"""AdamW with moments in 8 bits as it is compiled on a GPU: what a CPU computes, and no host waits for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import fit
from tests.mm1.train.test_adamw8bit import optimizer_of, wide
from tests.mm1.train.test_strategy import weights_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: mm1[float8]"),
]
SHAPES = [(2048,), (2048, 2048), (512, 2560), (8, 256, 576), (64, 3, 14, 14), (1, 8192)]


def test_a_gpu_steps_as_a_cpu_does_and_without_waiting() -> None:
    """A number between two codes may get the other one, so a few weights differ by a share of their step."""
    torch.manual_seed(0)
    here = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    there = [nn.Parameter(parameter.detach().cuda()) for parameter in here]
    optimizers = optimizer_of(*here), optimizer_of(*there)
    for step in range(4):
        for one, other in zip(here, there, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.cuda()
        optimizers[0].step()
        torch.cuda.set_sync_debug_mode("error" if step == 3 else "default")
        try:
            optimizers[1].step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(here, there, strict=True):
        apart = (one - other.cpu()).abs()
        assert float(apart.max()) < 0.01  # of a rate of 0.01
        assert float(apart.mean()) < 1e-5


def test_a_run_goes_on_where_it_was(corpus: Path, tmp_path: Path) -> None:
    config = wide(corpus, 4, max_steps=6, log_every_n_steps=1, deterministic=True)
    config["trainer"] |= {"accelerator": "gpu", "precision": "bf16-mixed"}
    fit(tmp_path / "whole", config)
    config["trainer"]["callbacks"] = [{"class_path": "tests.mm1.train.test_strategy.StopAfterThree"}]
    fit(tmp_path / "parts", config)
    del config["trainer"]["callbacks"]
    fit(tmp_path / "parts", config)
    whole, parts = (weights_of(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
