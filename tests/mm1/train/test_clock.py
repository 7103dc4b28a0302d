"""Where the time of a step goes: parts add up, a slow part is found, and lines of metrics have the numbers."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.batch import IMAGE, Batch, targets_of
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.peak import peak_tflops
from mm1.train.clock import PARTS, Clock
from tests.conftest import IMAGE_PX, IMAGE_TOKENS, fit, run_config, tiny_model


@pytest.fixture
def made() -> MM1:
    """A tiny model."""
    model = build(tiny_model(0)).to_empty(device="cpu")
    model.init_weights(0)
    return model


@pytest.fixture
def batch() -> Batch:
    """A row of one picture and some text."""
    g = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, 300, (1, 20), generator=g)
    tokens_BT[:, :IMAGE_TOKENS] = IMAGE
    ones_BT, positions_BT = torch.ones_like(tokens_BT), torch.arange(20)[None]
    targets_BT = targets_of(tokens_BT, ones_BT, ones_BT.bool())
    images = torch.randint(0, 256, (1, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8, generator=g)
    return Batch(tokens_BT, targets_BT, ones_BT, positions_BT, torch.zeros_like(tokens_BT), images)


def test_lines_have_seconds_by_part_and_the_wait_for_data(make_corpus, tmp_path):
    run = fit(tmp_path / "run", run_config(make_corpus(captions=41, interleaved=30, text=17), max_steps=4))
    lines = run.history("train")
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert all(line[f"seconds/{part}"] > 0 for part in PARTS)
        assert 0 < line["data_wait"] < 1


def test_parts_add_up_and_a_slow_one_is_found(made, batch):
    clock = Clock(made, torch.device("cpu"))
    slow = made.vision.forward

    def wait(images):
        time.sleep(0.2)
        return slow(images)

    made.vision.forward = wait
    begun_s = time.perf_counter()
    clock.start()
    sums = made.losses(batch)
    clock.mark("loss")
    sums.cross_entropy.backward()
    clock.mark("encoder")
    found = clock.stop()
    assert sum(found.values()) == pytest.approx(time.perf_counter() - begun_s, abs=0.05)
    assert found["encoder"] > 0.2
    assert max(found[part] for part in PARTS if part != "encoder") < found["encoder"]
    assert clock.stop() == {}


class Break(Callback):
    """Break training off while a step is timed."""

    models: ClassVar[list[MM1]] = []

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        self.models.append(pl_module.model)
        assert hooks(pl_module.model) > 0
        raise InterruptedError


def hooks(model: MM1) -> int:
    modules = (model.vision, model.decoder, model.decoder.embedding)
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_a_step_that_is_broken_off_leaves_no_hooks(make_corpus, tmp_path):
    config = run_config(
        make_corpus(captions=41, interleaved=30, text=17),
        log_every_n_steps=1,
        callbacks=[{"class_path": f"{__name__}.Break"}],
    )
    with pytest.raises(InterruptedError):
        fit(tmp_path / "run", config)
    [model] = Break.models
    assert hooks(model) == 0


def test_nothing_is_timed_that_was_not_asked_for(made, batch):
    clock = Clock(made, torch.device("cpu"))
    made.losses(batch).cross_entropy.backward()
    clock.mark("optimizer")
    assert clock.stop() == {}


def test_the_share_of_a_cards_best_is_known_by_its_name():
    assert peak_tflops("NVIDIA H200") == peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("cpu") is None
