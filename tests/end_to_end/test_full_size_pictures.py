"""Pictures as the 3B to 30B models see them, 378 px and 144 tokens: a tiny model from raw files to an answer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import mm1
from data_pipelines.pipeline import Settings, build
from data_pipelines.train_tokenizer import train_tokenizer
from mm1.batch import IGNORE, IMAGE, Batch
from mm1.data.streams import Recipe, Windows
from mm1.model.build import build as build_model
from mm1.model.mm1 import MM1
from tests.conftest import fit, run_config
from tests.data_pipelines.conftest import write_raw

PX, PATCH_PX, TOKENS, ROW_TOKENS, VOCABULARY = 378, 14, 144, 1024, 330


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("full") / "raw")


@pytest.fixture(scope="module")
def corpus(raw: Path) -> Path:
    out = raw.parent / "corpus"
    train_tokenizer(raw, out, VOCABULARY)
    build(raw, out, Settings(row_tokens=ROW_TOKENS, tokens_per_image=TOKENS, image_px=PX))
    return out


@pytest.fixture(scope="module")
def config(corpus: Path) -> dict[str, Any]:
    """The 3B model's grid of 27 x 27 patches and its connector, everything else tiny."""
    config = run_config(corpus, max_steps=8)
    parts = config["model"]["model"]["init_args"]
    parts["vision"]["init_args"] |= {"image_px": PX, "patch_px": PATCH_PX}
    parts["connector"]["init_args"]["tokens"] = TOKENS
    parts["decoder"]["init_args"]["vocabulary"] = VOCABULARY
    config["data"] |= {"row_tokens": ROW_TOKENS, "images_per_row": 16, "rows_per_step": 2}
    return config


@pytest.fixture(scope="module")
def model(config: dict[str, Any]) -> MM1:
    model = build_model(config["model"]["model"], device="cpu")
    model.init_weights(seed=0)
    return model


@pytest.fixture(scope="module")
def batch(corpus: Path, model: MM1) -> Batch:
    recipe = Recipe(corpus=corpus, image_spec=model.image_spec, row_tokens=ROW_TOKENS, rows_per_step=2)
    windows = Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    return next(itertools.chain.from_iterable(windows))


def test_rows_hold_144_places_a_picture_and_the_last_one_speaks(batch: Batch) -> None:
    images = len(batch.images_ICHW)
    assert batch.images_ICHW.shape == (images, 3, PX, PX)
    assert images > len(batch.tokens_BT), "rows of several pictures"
    places_BT = batch.tokens_BT == IMAGE
    assert int(places_BT.sum()) == images * TOKENS
    for tokens, segments, targets in zip(batch.tokens_BT, batch.segments_BT, batch.targets_BT, strict=True):
        starts = [t for t in range(ROW_TOKENS) if tokens[t] == IMAGE and (t == 0 or tokens[t - 1] != IMAGE)]
        for start, end in ((start, start + TOKENS) for start in starts):
            assert (tokens[start:end] == IMAGE).all()
            assert (targets[start : end - 1] == IGNORE).all()
            assert segments[end - 1] == segments[end]
            assert targets[end - 1] == tokens[end] != IGNORE


def test_features_of_27_by_27_patches_stand_in_their_places(model: MM1, batch: Batch) -> None:
    assert (model.vision.grid, model.image_spec.size_px, model.image_spec.tokens) == (27, PX, TOKENS)
    with torch.no_grad():
        features_IND = model.encode_images(batch.images_ICHW)
        x_BTD = model.embed(batch.tokens_BT, features_IND)
        sums = model.losses(batch)
    assert torch.equal(x_BTD[batch.tokens_BT == IMAGE], features_IND.flatten(0, 1))
    assert int(sums.targets) == batch.targets > 0
    assert torch.isfinite(sums.cross_entropy)


def test_such_a_model_trains_and_answers(config: dict[str, Any], raw: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", config)
    losses = [line["loss"] for line in run.history("train")]
    assert losses[-1] < losses[0]
    assert run.history("train")[-1]["images_per_row"] > 1
    answer = mm1.load(run.last).generate([raw / "captions/images/c0.jpg"], "What is it?", max_new_tokens=3)
    assert isinstance(answer, str)
