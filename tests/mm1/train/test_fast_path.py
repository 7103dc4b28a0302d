"""Twenty steps of a GPU's operators, Triton's in its interpreter, learn what a CPU's do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mm1.batch import IMAGE, Batch, targets_of
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.train import masters
from mm1.train.masters import MasterAdamW, lower
from mm1.train.parallel import gradient_norm

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has its own, see test_gpu_step.py"),
]
VOCABULARY, IMAGES, TOKENS, POSITIONS, STEPS = 60, 2, 4, 16, 20


def made(lowered: bool) -> MM1:
    vision = {"name": "ViT-B-32-quickgelu", "image_px": 28, "patch_px": 14, "width": 32, "layers": 2, "heads": 2}
    decoder = {"vocabulary": VOCABULARY, "width": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn_width": 48}
    decoder |= {"across_documents": True}
    parts = {
        "vision": {"class_path": "mm1.model.vision.OpenClip", "init_args": {**vision, "ffn_width": 64}},
        "connector": {
            "class_path": "mm1.model.connector.CAbstractor",
            "init_args": {"tokens": TOKENS, "width": 32, "depth": 1},
        },
        "decoder": {"class_path": "mm1.model.decoder.Decoder", "init_args": decoder},
    }
    model = build({"class_path": "mm1.model.mm1.MM1", "init_args": parts}, device="cpu")
    model.to_empty(device="cpu").init_weights(0)
    if lowered:
        lower(model)
    return model.train()


def batches() -> list[Batch]:
    """Four, one of them without pictures, each met five times."""
    g = torch.Generator().manual_seed(0)
    found = []
    for number in range(4):
        tokens_BT = torch.randint(0, VOCABULARY, (1, POSITIONS), generator=g)
        images = IMAGES if number < 3 else 0
        tokens_BT.view(-1)[: images * TOKENS] = IMAGE
        segments_BT, positions_BT = torch.ones_like(tokens_BT), torch.arange(POSITIONS).expand(1, -1).contiguous()
        targets_BT = targets_of(tokens_BT, segments_BT, torch.ones_like(tokens_BT, dtype=torch.bool))
        pictures = torch.randint(0, 256, (images, 3, 28, 28), generator=g, dtype=torch.uint8)
        found.append(Batch(tokens_BT, targets_BT, segments_BT, positions_BT, torch.zeros_like(tokens_BT), pictures))
    return found


def losses(lowered: bool) -> list[float]:
    model, found = made(lowered), []
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = MasterAdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        batch = batches()[step % 4]
        sums = model.losses(batch)
        loss = sums.cross_entropy / sums.targets
        loss.backward()
        optimizer.scale = (1.0 / (gradient_norm(model.parameters()) + 1e-6)).clamp(max=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.item())
    return found


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every tensor says that it is on a GPU; the operators of ours that were taken."""
    taken: set[str] = set()
    for module, name in (
        ("mm1.model.dense_triton", "add_norm"),
        ("mm1.model.dense_triton", "add_norm_backward"),
        ("mm1.model.dense_triton", "gated_backward"),
        ("mm1.model.dense_triton", "cross_entropy_"),
        ("mm1.train.masters_triton", "update"),
    ):
        whole = getattr(__import__(module, fromlist=[name]), name)

        def noted(*given: Any, name: str = name, whole: Any = whole, **named: Any) -> Any:
            taken.add(name)
            return whole(*given, **named)

        monkeypatch.setattr(f"{module}.{name}", noted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(masters, "_in_one_pass", lambda work: True)
    return taken


OURS = {"add_norm", "add_norm_backward", "gated_backward", "cross_entropy_", "update"}


@pytest.mark.parametrize(("lowered", "tolerance"), [(False, 1e-4), (True, 0.02)])
def test_twenty_losses_are_those_of_the_plain_path(
    lowered: bool, tolerance: float, request: pytest.FixtureRequest
) -> None:
    plain = losses(lowered)
    taken = request.getfixturevalue("as_on_gpu")
    fast = losses(lowered)
    assert taken == OURS
    assert plain[-1] < plain[0] - 0.5, "something is learnt"
    assert fast == pytest.approx(plain, rel=tolerance)
