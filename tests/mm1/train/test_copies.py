"""Batches on their way to the device: whatever order their pictures lie in and whichever stream copies them."""

from __future__ import annotations

import pytest
import torch

from mm1.batch import IMAGE, Batch
from mm1.data.image import channels_first, room
from mm1.model.build import build
from mm1.train.module import Objective
from tests.conftest import IMAGE_PX, IMAGE_TOKENS, tiny_model


def batch_of(images: int, seed: int = 0) -> Batch:
    """One row that is all pictures, as a loader makes them: channels last."""
    generator = torch.Generator().manual_seed(seed)
    images_ICHW = channels_first(room(images, IMAGE_PX))
    images_ICHW.copy_(torch.randint(0, 256, images_ICHW.shape, generator=generator, dtype=torch.uint8))
    ones_BT = torch.ones(1, images * IMAGE_TOKENS, dtype=torch.int64)
    return Batch(IMAGE * ones_BT, -100 * ones_BT, ones_BT, ones_BT.cumsum(1) - 1, 0 * ones_BT, images_ICHW)


def objective() -> Objective:
    model = build(tiny_model(), device="cpu")
    model.init_weights(0)
    return Objective(model)


def test_pictures_mean_the_same_in_any_order_of_memory() -> None:
    model, images_ICHW = objective().model.eval(), batch_of(3).images_ICHW
    assert not images_ICHW.is_contiguous()
    with torch.no_grad():
        assert torch.equal(model.encode_images(images_ICHW), model.encode_images(images_ICHW.contiguous()))


def test_without_a_gpu_a_batch_is_only_handed_on() -> None:
    batch = batch_of(2)
    found = objective().transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(found.images_ICHW, batch.images_ICHW)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_waits_for_nothing_and_is_waited_for() -> None:
    ours, device = objective(), torch.device("cuda:0")
    busy = torch.randn(4096, 4096, device=device)
    for seed in range(20):
        pinned = batch_of(8, seed).pin_memory()
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)  # the step before, still computed when the copy is asked for
        done = torch.cuda.Event()
        done.record()
        moved = ours.transfer_batch_to_device(pinned, device, 0)
        assert not done.query(), "the copy waited for the step before"
        total = moved.images_ICHW.sum(dtype=torch.int64)
        assert total.item() == pinned.images_ICHW.sum(dtype=torch.int64).item()
