"""What a run tells of its routers is true, and collapse is told once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mm1.batch import IMAGE, Batch
from mm1.model.build import build
from mm1.model.loss import LossSums
from mm1.model.moe.layer import MoE
from mm1.model.moe.stats import GAUGES
from mm1.train.routing_watch import RoutingWindow, WatchRouting
from tests.conftest import fit, run_config, tiny_model

NUMBERS = {"load", *GAUGES[1:]}


class Collapse(Callback):
    """Every token's logits are the same and far apart, so that all take the same experts; nothing pulls them back."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        router = pl_module.model.decoder.layers[1].ffn.router
        router.forward = lambda x_BTD, places: type(router).forward(router, torch.ones_like(x_BTD), places)


def watched(**limits: Any) -> dict[str, Any]:
    return {"class_path": "mm1.train.routing_watch.WatchRouting", "init_args": limits}


def test_a_line_tells_what_routers_did_since_the_last(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, experts=4, accumulate_grad_batches=2, max_steps=5))
    lines = run.history("experts")
    assert [(line["step"], line["steps"]) for line in lines] == [(2, 2), (4, 2), (5, 1)]
    for line in lines:
        assert line["layers"] == [1]
        assert line["max_load"][0] == pytest.approx(4 * max(line["load"][0]), abs=1e-4)
        assert line["dead"] == [0]
        assert (line["dropped"], line["visited"], line["covered"]) == ([0], [2], [1])
        assert 0 < line["entropy"][0] <= math.log(4) + 1e-6
        assert line["z"][0] > 0
        assert line["logit_norm"][0] > 0
        assert line["modality"].keys() == {"text", "image"}
        assert line["source"].keys() == {"captions", "interleaved", "text"}
        for numbers in (*line["modality"].values(), *line["source"].values()):
            assert numbers.keys() == NUMBERS
            assert sum(numbers["load"][0]) == pytest.approx(1, abs=1e-5)
        [together] = line["together"]
        own = [together[e][e] for e in range(4)]
        assert sum(own) == pytest.approx(2, abs=1e-5)  # every token visits two
        assert own == pytest.approx([2 * share for share in line["load"][0]], abs=1e-5)
        assert sum(map(sum, together)) == pytest.approx(4, abs=1e-5)


def test_a_split_counts_the_tokens_of_its_kind(corpus: Path) -> None:
    """Two batches counted by hand, token by token."""
    model = build(tiny_model(experts=4), device="cpu")
    model.init_weights(seed=0)
    ffn = model.decoder.layers[1].ffn
    assert isinstance(ffn, MoE)
    chosen: list[torch.Tensor] = []
    ffn.router.register_forward_hook(lambda _, __, routing: chosen.append(routing.choice.experts_MK))
    window, batches = RoutingWindow([1], ["captions", "text"]), [two_rows(seed) for seed in (0, 1)]
    for batch in batches:
        with torch.no_grad():
            window.add(model.losses(batch))
    line = window.read(lambda tensor: tensor)
    for name, here in (
        ("text", lambda b: b.tokens_BT != IMAGE),
        ("image", lambda b: b.tokens_BT == IMAGE),
    ):
        counts = torch.zeros(4)
        for batch, experts_MK in zip(batches, chosen, strict=True):
            counts += experts_MK[(here(batch) & (batch.segments_BT > 0)).flatten()].flatten().bincount(minlength=4)
        assert line["modality"][name]["load"][0] == pytest.approx((counts / counts.sum()).tolist(), abs=1e-5)
    assert line["source"].keys() == {"captions"}
    assert not window.read(lambda tensor: tensor), "read once, a window begins anew"


def two_rows(seed: int) -> Batch:
    chance = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(5, 300, (2, 12), generator=chance)
    tokens_BT[0, 2:6] = IMAGE
    segments_BT = torch.ones_like(tokens_BT)
    segments_BT[1, 9:] = 0
    images = torch.randint(0, 255, (1, 3, 28, 28), generator=chance, dtype=torch.uint8)
    positions_BT = torch.arange(12).expand(2, 12)
    zeros = torch.zeros_like(tokens_BT)
    return Batch(tokens_BT, torch.full_like(zeros, 7), segments_BT, positions_BT, zeros, images, ("captions", "text"))


def test_collapse_is_warned_of_once_with_the_remedy(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(corpus, experts=4)
    config["model"]["model"]["init_args"]["decoder"]["init_args"]["moe"]["init_args"]["balance_weight"] = 0.0
    config["trainer"]["callbacks"] = [{"class_path": f"{__name__}.Collapse"}, watched(window_steps=4)]
    run = fit(tmp_path / "run", config)
    told = [record.getMessage() for record in caplog.records if "routing collapses" in record.getMessage()]
    assert len(told) == 1
    assert "step 4: routing collapses, and has for 4 steps (layer 1: busiest expert 2.0 x" in told[0]
    assert "2 of 4 dead" in told[0]
    assert "set balance_weight to 0.01, it is 0, or lower the decoder's rate" in told[0]
    assert run.history("experts")[-1]["dead"] == [2]


def test_a_healthy_run_is_not_warned_of(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(corpus, experts=4)
    config["trainer"]["callbacks"] = [watched(window_steps=2)]
    fit(tmp_path / "run", config)
    assert "routing collapses" not in caplog.text


def test_uneven_load_must_last(caplog: pytest.LogCaptureFixture) -> None:
    decoder = build(tiny_model(experts=8)).decoder
    watch = WatchRouting(max_load=3, window_steps=30)
    uneven = {"steps": 10, "layers": [1], "max_load": [3.4], "dead": [0], "load": [[0.0] * 8]}
    even = uneven | {"max_load": [1.2]}
    with caplog.at_level(logging.WARNING):
        for step, line in enumerate([uneven, uneven, even, uneven, uneven], 1):
            watch.look(10 * step, line, decoder)
        assert not caplog.records
        watch.look(60, uneven, decoder)
    assert "step 60: routing collapses" in caplog.text
    assert "raise balance_weight, which is 0.01, or lower the decoder's rate" in caplog.text


def test_many_experts_leave_their_pairs_out() -> None:
    zeros = torch.zeros(1)
    sums = LossSums(
        *[zeros] * 8,
        load_LGE=torch.ones(2, 2, 64),
        gauges_LGN=torch.ones(2, 2, len(GAUGES)),
        together_LEE=torch.ones(2, 64, 64),
    )
    window = RoutingWindow([1, 3], ["text"])
    window.add(sums)
    line = window.read(lambda tensor: tensor)
    assert "together" not in line
    assert line["max_load"] == pytest.approx([1, 1], abs=1e-4)
